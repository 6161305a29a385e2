"""SpecKV-PC's accuracy: right answers with a quarter of the prompt and a few KV pairs per head.

    python -m benchmarks.speckvpc_accuracy --data squad-like.json --out rows.jsonl

Two ways of combining both methods. "tokens": the engine's cascade, as in the paper: SpecPC selects single tokens of the
prompt, and the same draft pass generates SpecKV's lookahead (method="speckvpc"). "sentences": the RAG chain:
`SpecPC.compress` keeps sentences of the passages, then the LLM evicts KV pairs (method="speckv"). The embedded model is
target and draft, prompted as by `draftapprox ask`. Rows are appended to --out; a second run continues from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPC, SpecPCConfig, load_model
from draftapprox_integrations.chat.answering import answer

from .common import Question, machine, measured_rows, squad_questions, table, wilson
from .speckv_accuracy import interval

UNLIMITED = SpecKVConfig(max_capacity_prompt=1 << 20, lookahead_tokens=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--out", type=Path, required=True, help="one JSON row per question; a run continues from it")
    parser.add_argument("--model", default="default")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--keep-ratio", type=float, default=0.25, help="share of the prompt that SpecPC keeps")
    parser.add_argument("--capacities", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()

    model = load_model(args.model)
    questions = squad_questions(args.data, args.n, args.passages, args.seed)
    started = time.perf_counter()
    rows = measured_rows(
        args.out, questions, lambda q: measure(model, q, args.keep_ratio, args.capacities, args.max_new_tokens)
    )
    print(machine())
    print(
        f"{model.name} ({model.dtype}) as target and draft; {len(rows)} questions of {args.data.name}, "
        f"seed {args.seed}, {args.passages} passages; SpecPC keeps {args.keep_ratio:.0%}; "
        f"this run {time.perf_counter() - started:.0f} s\n"
    )
    n = len(rows)
    base = sum(row["full"] for row in rows)
    lines = []
    for name in rows[0]:
        hits = sum(row[name] for row in rows)
        low, high = wilson(hits, n)
        pairs = [float(row[name]) - float(row["full"]) for row in rows]
        difference = "" if name == "full" else interval(pairs, 100)
        share = f"{100 * hits / max(base, 1):.0f}%"
        lines.append([name, f"{100 * hits / n:.1f}", f"{100 * low:.1f} - {100 * high:.1f}", share, difference])
    header = ["prompt, KV pairs per head", "answers right, %", "95% interval", "of the full cache's", "points, paired"]
    print(table(header, lines))


def measure(
    model: LoadedModel, question: Question, keep_ratio: float, capacities: Sequence[int], max_new_tokens: int
) -> dict[str, bool]:
    """Whether each combination answers one question."""

    def is_right(engine: SpecKV, passages: Sequence[str]) -> tuple[bool, int]:
        with closing(engine):
            result = answer(engine, passages, question.text, max_new_tokens)
        text = result.text.lower()
        return any(accepted.lower() in text for accepted in question.answers), result.usage.prompt_tokens

    row: dict[str, bool] = {}
    row["full"], tokens = is_right(SpecKV(model, None, UNLIMITED), question.passages)
    specpc = SpecPCConfig(max_capacity_prompt=int(keep_ratio * tokens))
    for capacity in capacities:
        cascade = SpecKVPCConfig(specpc_config=specpc, speckv_config=SpecKVConfig(max_capacity_prompt=capacity))
        row[f"tokens, {capacity}"], _ = is_right(SpecKV(model, model, cascade), question.passages)
    kept = SpecPC(model).compress(question.passages, question.text, keep_ratio=keep_ratio)
    texts = [passage.text for passage in kept.passages if passage.text]
    for capacity in capacities:
        row[f"sentences, {capacity}"], _ = is_right(
            SpecKV(model, model, SpecKVConfig(max_capacity_prompt=capacity)), texts
        )
    return row


if __name__ == "__main__":
    main()
