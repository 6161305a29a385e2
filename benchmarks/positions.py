"""Renumbered or original positions behind SpecPC: right answers, and the log-likelihood of the gold answer.

    python -m benchmarks.positions --data squad-like.json --out rows.jsonl

The embedded model is target and draft, and only the positions differ: for each share of the prompt SpecPC selects once,
and the target reads the same tokens with positions 0, 1, 2, ... and with those of the whole prompt. The log-likelihood
of the first gold answer as the beginning of the reply is in nats, summed over its tokens. Rows are appended to --out; a
second run continues from them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from draftapprox_integrations import LoadedModel, SpecKV, SpecPC, SpecPCConfig, load_model
from draftapprox_integrations.chat.answering import rag_prompt
from draftapprox_integrations.chat.calls import prepare_chat
from draftapprox_integrations.chat.template import Message
from draftapprox_integrations.specpc.selection import pool_scores, select_tokens

from .common import Question, machine, measured_rows, squad_questions, table, wilson
from .speckv_accuracy import interval

POSITIONS = ("renumber", "original")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--out", type=Path, required=True, help="one JSON row per question; a run continues from it")
    parser.add_argument("--model", default="default")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    model = load_model(args.model)
    questions = squad_questions(args.data, args.n, args.passages, args.seed)
    started = time.perf_counter()
    rows = measured_rows(args.out, questions, lambda q: measure(model, q, args.shares, args.max_new_tokens))
    tokens = statistics.mean(row["prompt"] for row in rows)
    print(machine())
    print(
        f"{model.name} ({model.dtype}) as target and draft; {len(rows)} questions of {args.data.name}, seed {args.seed}"
    )
    seconds = time.perf_counter() - started
    print(f"{args.passages} passages, {tokens:.0f} prompt tokens on average; this run {seconds:.0f} s\n")
    report(rows, args.shares)


def measure(model: LoadedModel, question: Question, shares: Sequence[float], max_new_tokens: int) -> dict[str, object]:
    """Measure answers and log-likelihoods for one question."""
    message = [Message("user", rag_prompt(question.passages, question.text))]
    ids = torch.tensor(prepare_chat(SpecKV(model, model), message).ids)
    gold = model.require_tokenizer()(question.answers[0], add_special_tokens=False)["input_ids"]
    all_positions = torch.arange(len(ids))
    (whole,) = outcomes(model, question, ids, [all_positions], gold, max_new_tokens)
    row: dict[str, object] = {"prompt": len(ids), "full": whole[0], "full LL": whole[1]}
    scores = SpecPC(model, SpecPCConfig(max_capacity_prompt=len(ids) - 1)).select(ids[None]).scores[0]
    for share in shares:
        config = SpecPCConfig(max_capacity_prompt=round(share * len(ids)))
        (protected,) = prepare_chat(SpecKV(model, model, config), message).options["protected"]
        pooled = pool_scores(scores, config.pool_type, config.kernel_size)
        capacity, window = config.max_capacity_prompt, config.resolved_window()
        keep = select_tokens(pooled, capacity, window, config.resolved_neighbors(), torch.tensor(protected))
        results = outcomes(model, question, ids[keep], [all_positions[:capacity], keep], gold, max_new_tokens)
        for name, (right, likelihood) in zip(POSITIONS, results, strict=True):
            row |= {f"{name} {share}": right, f"{name} {share} LL": likelihood}
    return row


@torch.inference_mode()
def outcomes(
    model: LoadedModel,
    question: Question,
    ids: Tensor,
    position_rows: list[Tensor],
    gold: list[int],
    max_new_tokens: int,
) -> list[tuple[bool, float]]:
    """Per row of positions: whether the greedy answer after `ids` is right, and the log-likelihood of `gold`."""
    tokenizer, rows = model.require_tokenizer(), len(position_rows)
    prompts, positions = ids.expand(rows, -1), torch.stack(position_rows)
    cache = DynamicCache(
        config=model.model.config
    )  # without a cache, transformers reads gaps in positions as several prompts
    model.model(prompts[:, :-1], position_ids=positions[:, :-1], past_key_values=cache, logits_to_keep=1)
    logits = model.model(
        torch.tensor([[int(ids[-1]), *gold[:-1]]] * rows),
        position_ids=positions[:, -1:] + torch.arange(len(gold)),
        past_key_values=copy.deepcopy(cache),
    ).logits
    targets = torch.tensor(gold)[None, :, None].expand(rows, -1, -1)
    likelihoods = logits.float().log_softmax(-1).gather(2, targets).sum(dim=(1, 2)).tolist()
    out = model.model.generate(  # type: ignore[operator]
        prompts,
        attention_mask=torch.ones_like(prompts),
        position_ids=positions,
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    texts = [str(tokenizer.decode(row[len(ids) :], skip_special_tokens=True)).lower() for row in out]
    return [
        (any(answer.lower() in text for answer in question.answers), likelihood)
        for text, likelihood in zip(texts, likelihoods, strict=True)
    ]


def report(rows: list[dict[str, object]], shares: Sequence[float]) -> None:
    """Print the table and the paired differences."""
    n = len(rows)
    lines = []
    for name in ["full", *(f"{kind} {share}" for share in shares for kind in POSITIONS)]:
        hits = sum(bool(row[name]) for row in rows)
        low, high = wilson(hits, n)
        likelihood = statistics.mean(float(str(row[f"{name} LL"])) for row in rows)
        kind, *rest = name.split()
        kept = f"{float(rest[0]):.0%} of the prompt, {kind}" if rest else "whole prompt"
        lines.append([kept, f"{100 * hits / n:.1f}", f"{100 * low:.1f} - {100 * high:.1f}", f"{likelihood:.3f}"])
    print(table(["kept, positions", "answers right, %", "95% interval", "log-likelihood of the gold answer"], lines))
    print()
    for share in shares:
        answers = [float(bool(r[f"original {share}"])) - float(bool(r[f"renumber {share}"])) for r in rows]
        likelihoods = [float(str(r[f"original {share} LL"])) - float(str(r[f"renumber {share} LL"])) for r in rows]
        print(
            f"original - renumber at {share:.0%}, paired: answers {interval(answers, 100)} points, "
            f"log-likelihood {interval(likelihoods)}"
        )


if __name__ == "__main__":
    main()
