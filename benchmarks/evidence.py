"""What methods keep and what models make of it, on one page: RULER, needles to 128k tokens, questions with passages.

    python -m benchmarks.evidence --ruler-data FOLDER --hotpotqa hotpotqa_dev.json --xquad xquad.en.json

Under 40 minutes on two cores, with the embedded model as draft, target and reader. A second run goes on from what the
first has in benchmarks/results/evidence/, then writes docs/evidence.md and its plots. There may also lie what
LongLLMLingua kept of the same questions: hotpotqa.beside.jsonl and xquad.beside.jsonl, see rag_peers.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from draftapprox_integrations import load_model
from draftapprox_integrations.evaluation.environment import environment
from draftapprox_integrations.evaluation.page import BUDGET_AXIS, score_lines, score_rows, usage_rows
from draftapprox_integrations.evaluation.plots import write_plot
from draftapprox_integrations.evaluation.runs import evaluate, read_results, read_runs
from draftapprox_integrations.specpc.calibration.questions import read_tasks

from .common import machine, table
from .rag_peers import BUDGETS, peer_rows, peer_table
from .ruler_evidence import SAMPLES, needle_rows, needle_table

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "cpu"
OUT = ROOT / "benchmarks" / "results" / "evidence"
QUESTIONS, SEED = 20, 5
PARTS = ["needles", "questions", "ruler"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ruler-data", type=Path, help="folder with essays, SQuAD, HotpotQA; none: NVIDIA's wheel")
    parser.add_argument("--hotpotqa", type=Path, required=True, help="HotpotQA's development questions")
    parser.add_argument("--xquad", type=Path, required=True, help="XQuAD's English questions, or any in SQuAD's layout")
    parser.add_argument("-n", type=int, default=QUESTIONS, help="questions of each file")
    parser.add_argument("--samples", type=int, help="samples of each RULER task and length, in place of the configs'")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(SAMPLES), help="tokens of the needles' prompts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="run and show only these")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()

    needles: list[dict[str, Any]] = []
    questions: dict[str, list[dict[str, Any]]] = {}
    if "needles" in args.parts:
        with told("needles"):
            needles = needle_rows(args.out / "needles.jsonl", args.ruler_data, args.lengths, 1024, 16384, SEED)
    for name, path in {"HotpotQA": args.hotpotqa, "XQuAD": args.xquad}.items():
        if "questions" in args.parts:
            tasks, beside = read_tasks(path, args.n, seed=SEED), args.out / f"{name.lower()}.beside.jsonl"
            with told(name):
                questions[name] = peer_rows(
                    tasks,
                    load_model("default"),
                    BUDGETS,
                    args.out / f"{name.lower()}.jsonl",
                    beside if beside.exists() else None,
                )
    for run in read_runs(str(CONFIGS / "*.yaml"), samples=args.samples) if "ruler" in args.parts else []:
        with told(run.name):
            evaluate(run, args.out / "ruler", ruler_data=args.ruler_data)
    write_evidence(args.docs, list(read_results(args.out / "ruler")), needles, questions)
    print(machine())
    print(f"this run {(time.perf_counter() - begun) / 60:.0f} minutes; {args.docs / 'evidence.md'}")


@contextmanager
def told(name: str) -> Iterator[None]:
    """Say how long a part took."""
    started = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def write_evidence(
    docs: Path,
    runs: Sequence[Mapping[str, Any]],
    needles: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Write evidence.md and its plots into the folder of the documentation."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    found = environment()
    lines = [
        "# Evidence", "",
        "Written by `python -m benchmarks.evidence` "
        f"({found['processor']}, {found['cores']} cores; commit {found['commit']}; "
        f"{', '.join(f'{name} {version}' for name, version in found['packages'].items())}). Draft, target and reader "
        "are the embedded SmolLM2-135M-Instruct, so read the rows against one another: no answer of so small a model "
        "says how good a method is with a real one.",
        "",
    ]  # fmt: skip
    if runs:
        lines += [
            "## RULER at 2k and 4k tokens", "",
            f"Mean score in percent over {runs[0]['run']['samples']} prompts of each task and length. Budgets: KV "
            "pairs per head (snapkv, speckv, speckvpc, which first keeps 512 tokens), or tokens of the prompt (specpc: "
            "the paper's form; specpc-text: whole sentences).", "",
            table(*score_rows(runs)), "", *_picture("evidence-ruler", "Mean RULER score over the budget"), "",
            table(*usage_rows(runs)), "",
        ]  # fmt: skip
        write_plot(
            score_lines(runs),
            images / "evidence-ruler",
            title="Mean RULER score over the budget",
            x=BUDGET_AXIS,
            y="mean score, %",
        )
    if needles:
        lines += [
            "## Needles up to 128k tokens, without a reader", "",
            "The share of needles that is kept in at most 1,024 tokens of the prompt "
            "(niah_single_2, niah_multikey_1, niah_multiquery).", "",
            table(*needle_table(needles)), "",
            *_picture("evidence-needles", "Needles kept over the length of the prompt"), "",
        ]  # fmt: skip
        write_plot(
            _needle_lines(needles),
            images / "evidence-needles",
            title="Needles kept over the length of the prompt",
            x="tokens of the prompt",
            y="needles kept, %",
        )
    for name, rows in questions.items():
        count = len({row["task"] for row in rows})
        picture = f"evidence-{name.lower()}"
        lines += [
            f"## {name}: questions with passages", "",
            f"{count} questions, seed {SEED}. Evidence that is kept, the reader's answer, and the likelihood of the "
            "gold answer (higher is better; 95% interval of the paired difference). Seconds are those to shorten; "
            "the passages are new to the draft at the first budget and known at the second.", "",
            table(*peer_table(rows)), "", *_picture(picture, f"Evidence kept of {name} over the budget"), "",
        ]  # fmt: skip
        write_plot(
            _evidence_lines(rows),
            images / picture,
            title=f"Evidence kept of {name} over the budget",
            x="tokens that are kept",
            y="evidence kept, %",
        )
    (docs / "evidence.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _picture(name: str, alt: str) -> list[str]:
    return [f"![{alt}](images/{name}-{theme}.svg#only-{theme})" for theme in ("light", "dark")]


def _needle_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float | None, float]]]:
    groups: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        groups.setdefault(row["way"], {}).setdefault(row["length"], []).append(row["kept"])
    return {
        way: [(length, 100 * mean(kept)) for length, kept in by_length.items()] for way, by_length in groups.items()
    }


def _evidence_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float | None, float]]]:
    groups: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["budget"] is not None and row["evidence"] is not None:
            groups.setdefault(row["way"], {}).setdefault(row["budget"], []).append(row["evidence"])
    return {way: [(budget, 100 * mean(kept)) for budget, kept in one.items()] for way, one in groups.items()}


if __name__ == "__main__":
    main()
