"""SpecKV's accuracy at tight budgets: right answers, and KL divergence from the full cache's distribution.

    python -m benchmarks.speckv_accuracy --data squad-like.json --out rows.jsonl

The embedded model is target and draft: its greedy answer is the lookahead, so "SpecKV" is an upper bound for smaller
drafts; it uses SpecKVConfig's defaults. "SpecKV self" is draft="self": the lookahead is drafted from the quarter of the
prompt that SpecPC selects. SnapKV is the same engine without lookahead, with a window of 32 and a kernel of 7. KL is
KL(full cache || kept cache) in nats, averaged over the tokens of the full cache's answer. Rows are appended to --out; a
second run continues from them and adds missing columns.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftapprox_integrations import LoadedModel, SpecKVConfig, load_model
from draftapprox_integrations.chat.answering import rag_prompt
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.lookahead import SelfLookahead
from draftapprox_integrations.speckv.prefill import prefill

from .common import Question, machine, squad_questions, table, wilson

METHODS = ("SnapKV", "SpecKV", "SpecKV self")
SNAPKV: dict[str, Any] = {"window_size": 32, "kernel_size": 7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--out", type=Path, required=True, help="one JSON row per question; a run continues from it")
    parser.add_argument("--model", default="default")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--capacities", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    model = load_model(args.model)
    questions = squad_questions(args.data, args.n, args.passages, args.seed)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    started = time.perf_counter()
    for index, question in enumerate(questions):
        row = rows[index] if index < len(rows) else {}
        missing = [name for name in args.methods if any(f"{name} {size} KL" not in row for size in args.capacities)]
        if missing:
            rows[index : index + 1] = [row | measure(model, question, args.capacities, args.max_new_tokens, missing)]
            args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = rows[: args.n]
    tokens = statistics.mean(row["prompt"] for row in rows)
    print(machine())
    print(
        f"{model.name} ({model.dtype}) as target and draft; {len(rows)} questions of {args.data.name}, seed {args.seed}"
    )
    seconds = time.perf_counter() - started
    print(f"{args.passages} passages, {tokens:.0f} prompt tokens on average; this run {seconds:.0f} s\n")
    report(rows, args.capacities, args.methods)


def measure(
    model: LoadedModel, question: Question, capacities: Sequence[int], max_new_tokens: int, methods: Sequence[str]
) -> dict[str, object]:
    """Measure answers and KL for one question."""
    tokenizer = model.require_tokenizer()
    messages = [{"role": "user", "content": rag_prompt(question.passages, question.text)}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    mask = torch.ones_like(ids)

    def is_right(tokens: Tensor) -> bool:
        text = str(tokenizer.decode(tokens, skip_special_tokens=True)).lower()
        return any(answer.lower() in text for answer in question.answers)

    with torch.inference_mode():
        full = model.model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
        )[0, ids.shape[1] :]
        whole = torch.cat([ids, full[None]], dim=1)
        reference = model.model(whole, logits_to_keep=len(full) + 1, use_cache=False).logits[0, :-1]
    row: dict[str, object] = {"prompt": ids.shape[1], "full": is_right(full)}
    for name in methods:
        lookahead = full[:0] if name == "SnapKV" else full
        if name == "SpecKV self":
            lookahead = SelfLookahead(model).draft(ids, mask, max_new_tokens)[0]
        for capacity in capacities:
            config = SpecKVConfig(max_capacity_prompt=capacity, **(SNAPKV if name == "SnapKV" else {}))
            cache, _ = prefill(attention_view(model.model), ids, mask, [lookahead], config)
            decode_cache = copy.deepcopy(cache) if capacity == min(capacities) else None
            with torch.inference_mode():
                answer_ids = whole[:, ids.shape[1] - 1 : -1]
                logits = model.model(
                    answer_ids,
                    attention_mask=torch.ones_like(whole[:, :-1]),
                    position_ids=torch.arange(ids.shape[1] - 1, whole.shape[1] - 1)[None],
                    past_key_values=cache,
                ).logits[0]
            row[f"{name} {capacity} KL"] = kl(reference, logits)
            if decode_cache is not None:
                with torch.inference_mode():
                    out = model.model.generate(  # type: ignore[operator]
                        ids,
                        attention_mask=mask,
                        past_key_values=decode_cache,
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                    )
                row[f"{name} {capacity}"] = is_right(out[0, ids.shape[1] :])
    return row


def kl(reference: Tensor, other: Tensor) -> float:
    """Mean over positions of KL(reference || other), in nats, from logits [positions, vocabulary]."""
    p, q = reference.float().log_softmax(-1), other.float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def report(rows: list[dict[str, object]], capacities: Sequence[int], methods: Sequence[str]) -> None:
    """Print both tables and the paired differences."""
    n, least = len(rows), min(capacities)
    names = ["full", *(f"{name} {least}" for name in methods)]
    lines = []
    for name in names:
        hits = sum(bool(row[name]) for row in rows)
        low, high = wilson(hits, n)
        lines.append([name, f"{100 * hits / n:.1f}", f"{100 * low:.1f} - {100 * high:.1f}"])
    print(table(["cache (KV pairs per head)", "answers right, %", "95% interval"], lines))
    print()
    for name in methods[1:]:
        pairs = [float(bool(r[f"{name} {least}"])) - float(bool(r[f"SnapKV {least}"])) for r in rows]
        print(f"{name} - SnapKV at {least}, paired: {interval(pairs, 100)} points")
    print()
    lines = []
    for capacity in capacities:
        columns = [[float(str(row[f"{name} {capacity} KL"])) for row in rows] for name in methods]
        differences = [[b - a for a, b in zip(columns[0], column, strict=True)] for column in columns[1:]]
        means = [f"{statistics.mean(column):.3f}" for column in columns]
        lines.append([str(capacity), *means, *map(interval, differences)])
    headings = [*(f"KL of {name}" for name in methods), *(f"{name} - SnapKV, paired" for name in methods[1:])]
    print(table(["KV pairs per head", *headings], lines))


def interval(values: list[float], scale: float = 1.0) -> str:
    """Mean and 95% bootstrap interval."""
    rng = random.Random(0)
    means = sorted(statistics.mean(rng.choices(values, k=len(values))) for _ in range(2000))
    return f"{scale * statistics.mean(values):+.3f} ({scale * means[50]:+.3f} to {scale * means[1949]:+.3f})"


if __name__ == "__main__":
    main()
