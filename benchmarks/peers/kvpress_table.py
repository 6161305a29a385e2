"""Tables of benchmarks.peers.kvpress_peers' rows: means by press and budget, and each press less SnapKV, paired.

    python -m benchmarks.peers.kvpress_table rows.jsonl

Runs in this repository's environment. A press is compared on the questions that both it and SnapKV have a row of.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftapprox_integrations.evaluation.rag import exact_and_f1

from ..common import table
from ..speckv_accuracy import interval
from .rows import read_rows

BASELINE = "SnapKV"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines of benchmarks.peers.kvpress_peers")
    args = parser.parse_args(argv)
    rows = read_rows(args.rows)
    tokens = [row["tokens"] for row in rows if row["press"] == "full"]
    print(f"{len(tokens)} questions, {statistics.mean(tokens):.0f} prompt tokens on average\n")
    print(report(rows))


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per budget and press, the full cache first."""
    groups: dict[tuple[int | None, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["budget"], row["press"]), {})[row["id"]] = row
    lines = []
    for (budget, name), found in sorted(groups.items(), key=lambda group: group[0][0] or 0):
        baseline = {} if name in (BASELINE, "full") else groups.get((budget, BASELINE), {})
        shared = sorted(found.keys() & baseline.keys())
        line = ["" if budget is None else str(budget), name, str(len(found))]
        for measure in ("likelihood", "kl"):
            line.append(f"{statistics.mean(row[measure] for row in found.values()):.3f}")
            line.append(interval([found[key][measure] - baseline[key][measure] for key in shared]) if shared else "")
        lines.append([*line, *_answers(list(found.values()))])
    measures = ["gold answer, nats/token", "KL of the first token, nats"]
    header = [cell for measure in measures for cell in (measure, f"less {BASELINE}'s, paired")]
    header = ["pairs", "press", "questions", *header, "exact, %", "F1, %"]
    if not any(line[-1] for line in lines):  # no answer was written
        header, lines = header[:-2], [line[:-2] for line in lines]
    return table(header, lines)


def _answers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Exact match and F1 of the answers in per cent; empty where none was written."""
    if any(row["answer"] is None for row in rows):
        return ["", ""]
    scores = [exact_and_f1(row["answer"], row["gold"]) for row in rows]
    return [f"{100 * statistics.mean(column):.0f}" for column in zip(*scores, strict=True)]


if __name__ == "__main__":
    main()
