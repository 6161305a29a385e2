"""Presses of kvpress and SpecKV's beside each other, on the same prompts, pairs and reader. Runs where kvpress is.

    python -m benchmarks.peers.kvpress_peers --questions questions.jsonl --model FOLDER --out rows.jsonl

Every press sees the whole prompt but its last token, the question included, and keeps the same number of pairs per
layer and head. Then the model reads the last token and the gold answer (log-likelihood; KL from the full cache's
distribution of the first answer token), and writes an answer greedily. The questions come from
benchmarks.peers.export_prompts, the tables from benchmarks.peers.kvpress_table. A killed run goes on from the rows.

A press changes the cache and not the pass that fills it, so one prefill serves all presses and budgets (tested to keep
what each keeps alone). SnapKV has the window and kernel of this repository's other benchmarks, and once SpecKV's
window; the other presses have kvpress' defaults. ObservedAttention (H2O) needs eager attention and its own prefill.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kvpress  # type: ignore[import-not-found]
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from .rows import ratio_for, read_rows
from .speckv_press import SpecKVPress

Caches = dict[tuple[str, int], DynamicCache]


def make_presses() -> dict[str, Any]:
    """The presses by name; SpecKV's get their lookahead from the questions."""
    return {
        "SnapKV": kvpress.SnapKVPress(window_size=32, kernel_size=7),
        "SnapKV, window 8": kvpress.SnapKVPress(window_size=8, kernel_size=7),
        "ExpectedAttention": kvpress.ExpectedAttentionPress(),
        "KeyDiff": kvpress.KeyDiffPress(),
        "StreamingLLM": kvpress.StreamingLLMPress(),
        "TOVA": kvpress.TOVAPress(),
        "ObservedAttention": kvpress.ObservedAttentionPress(),
        "SpecKV": SpecKVPress(),
        "SpecKV self": SpecKVPress(),
    }


LOOKAHEADS = {"SpecKV": "lookahead", "SpecKV self": "self_lookahead"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines of benchmarks.peers.export_prompts")
    parser.add_argument("--model", required=True, help="the target: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256], help="pairs per layer and head")
    parser.add_argument("--presses", nargs="+", choices=list(make_presses()), help="default: all")
    parser.add_argument("--max-new-tokens", type=int, default=12, help="of the greedy answer; 0: write none")
    parser.add_argument("-n", type=int, help="questions, the first ones; default: all")
    args = parser.parse_args(argv)
    questions, begun = read_rows(args.questions)[: args.n], time.perf_counter()
    presses = {name: press for name, press in make_presses().items() if not args.presses or name in args.presses}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    known = {(row["id"], row["press"], row["budget"]) for row in read_rows(args.out)}
    for question in questions:
        wanted = [(name, budget) for budget in args.budgets for name in presses]
        missing = [key for key in wanted if (question["id"], *key) not in known]
        if missing or (question["id"], "full", None) not in known:
            lacking = {name: presses[name] for name, _ in missing}
            rows = measure(model, tokenizer, question, lacking, args.budgets, args.max_new_tokens)
            fresh = [row for row in rows if (row["id"], row["press"], row["budget"]) not in known]
            with args.out.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in fresh))
    names = ("torch", "transformers", "kvpress")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names), end="; ")
    print(f"{Path(args.model).name} ({model.dtype}); {len(questions)} questions; {time.perf_counter() - begun:.0f} s")


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    tokenizer: Any,
    question: Mapping[str, Any],
    presses: Mapping[str, Any],
    budgets: Sequence[int],
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """The rows of one question: the full cache's, then those of each press and budget that the prompt exceeds."""
    ids = tokenizer(question["prompt"], return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    gold = tokenizer(question["answer"], add_special_tokens=False)["input_ids"]
    context, last = ids[:, :-1], ids[:, -1:]
    full, caches = prefill(model, context, last, question, presses, budgets)
    reference, rows = None, []
    for budget in (None, *budgets):
        group = {"full": full} if budget is None else {n: cache for (n, b), cache in caches.items() if b == budget}
        if not group:
            continue
        cache = stack(list(group.values()))
        pairs = cache.get_seq_length()
        fed = torch.tensor([[int(last), *gold[:-1]]], device=ids.device).expand(len(group), -1)
        logits = feed(model, cache, fed, context.shape[1]).float().log_softmax(-1)
        likelihoods = logits.gather(2, torch.tensor(gold, device=ids.device)[None, :, None].expand(len(group), -1, -1))
        if reference is None:
            reference = logits[:, 0]
        divergences = (reference.exp() * (reference - logits[:, 0])).sum(-1)
        answers: list[str | None] = [None] * len(group)
        if max_new_tokens:
            cache.crop(pairs + 1)
            written = generate(model, cache, logits[:, 0].argmax(-1), ids.shape[1], max_new_tokens)
            answers = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written]
        for row, name in enumerate(group):
            found: dict[str, Any] = {"id": question["id"], "press": name, "budget": budget, "pairs": pairs}
            found |= {"tokens": ids.shape[1], "likelihood": float(likelihoods[row].mean())}
            rows.append(found | {"kl": float(divergences[row]), "answer": answers[row], "gold": question["answer"]})
    return rows


def prefill(
    model: PreTrainedModel,
    context: Tensor,
    last: Tensor,
    question: Mapping[str, Any],
    presses: Mapping[str, Any],
    budgets: Sequence[int],
) -> tuple[DynamicCache, Caches]:
    """The full cache, and the cache of every press and budget that is smaller than the context."""
    own: Caches = {}
    full = None
    eager = {name: press for name, press in presses.items() if isinstance(press, kvpress.ObservedAttentionPress)}
    drafted = {name: press for name, press in presses.items() if LOOKAHEADS.get(name) == "lookahead"}
    self_drafted = {name: press for name, press in presses.items() if LOOKAHEADS.get(name) == "self_lookahead"}
    others = {name: press for name, press in presses.items() if name not in {**eager, **drafted, **self_drafted}}
    for group, lookahead in (
        (others | drafted, question["lookahead"] if drafted else []),
        (self_drafted, question.get("self_lookahead")),
        (eager, []),
    ):
        if (group or full is None) and lookahead is not None:
            once = OnePrefill(lookahead=lookahead, tail=last[0].tolist() if lookahead else [])
            once.members = {
                (name, budget): (press, ratio_for(context.shape[1], budget))
                for name, press in group.items()
                for budget in budgets
                if budget < context.shape[1]
            }
            cache, once.caches = DynamicCache(), {key: DynamicCache() for key in once.members}
            model.set_attn_implementation("eager" if group and group is eager else "sdpa")
            with once(model):
                model.model(input_ids=context, past_key_values=cache)
            own |= once.caches
            full = cache if full is None else full
    model.set_attn_implementation("sdpa")
    assert full is not None
    return full, own


class OnePrefill(SpecKVPress):
    """Several presses on one prefill, each on what it would see alone; the pass's own cache stays full.

    Attributes:
        members: By name and budget a press and its compression ratio.
        caches: By name and budget the cache that receives what the press keeps.
    """

    members: dict[tuple[str, int], tuple[Any, float]]
    caches: Caches

    def compress(
        self,
        module: torch.nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Let every member compress, and keep all pairs of the prompt."""
        prompt = keys.shape[2] - (self._followers or 0)
        whole = (module, hidden_states, keys, values, attentions, kwargs)
        cos, sin = (part[:, :prompt] for part in kwargs["position_embeddings"])
        seen = kwargs | {"position_embeddings": (cos, sin)}
        cut = (module, hidden_states[:, :prompt], keys[:, :, :prompt], values[:, :, :prompt], attentions, seen)
        for key, (press, ratio) in self.members.items():
            press.compression_ratio = ratio
            if isinstance(press, SpecKVPress):
                press._followers = self._followers
            kept = press.compress(*(whole if isinstance(press, SpecKVPress) else cut))
            self.caches[key].update(*kept, module.layer_idx)
        return super().compress(*whole)


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One batch of caches of equal lengths."""
    made = DynamicCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        made.update(
            torch.cat([one.keys for one in layers]), torch.cat([one.values for one in layers]), len(made.layers)
        )
    return made


def feed(model: PreTrainedModel, cache: DynamicCache, ids: Tensor, position: int) -> Tensor:
    """Logits [batch, tokens, vocabulary] of tokens at their true positions, the first at `position`."""
    positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None].expand(len(ids), -1)
    logits: Tensor = model(ids, past_key_values=cache, position_ids=positions).logits
    return logits


def generate(
    model: PreTrainedModel, cache: DynamicCache, first: Tensor, position: int, max_new_tokens: int
) -> list[list[int]]:
    """Greedy tokens of each row from its first one on, up to an end of sequence."""
    eos = model.generation_config.eos_token_id
    ends = torch.tensor(eos if isinstance(eos, list) else [eos], device=first.device)
    tokens, ended = [first], torch.isin(first, ends)
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        logits = feed(model, cache, tokens[-1][:, None], position + len(tokens) - 1)
        tokens.append(logits[:, -1].argmax(-1))
        ended |= torch.isin(tokens[-1], ends)
    rows = torch.stack(tokens, dim=1).tolist()
    stops = set(ends.tolist())
    return [row[: next((at for at, token in enumerate(row) if token in stops), len(row))] for row in rows]


if __name__ == "__main__":
    main()
