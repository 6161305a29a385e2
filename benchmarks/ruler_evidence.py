"""Needles of RULER at any length without a reader: whether what is kept of the prompt still holds them.

    python -m benchmarks.ruler_evidence --ruler-data FOLDER --lengths 4096 16384 --out rows.jsonl

SpecPC as text, BM25 over sentences, and the first tokens, each in at most --keep tokens; MiniLM over sentences where
its weights are installed (see minilm.py), up to --embed-up-to tokens. The draft reads each prompt anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from draftapprox_integrations import SpecPC, load_model
from draftapprox_integrations.evaluation.prompts import split_prompt
from draftapprox_integrations.evaluation.rag import Way, read_rows, ways_of
from draftapprox_integrations.evaluation.ruler import ruler_samples
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task
from draftapprox_integrations.specpc.scoring import EmbedderScorer

from .common import machine, table
from .minilm import MiniLM

NEEDLES = ("niah_single_2", "niah_multikey_1", "niah_multiquery")
# Samples of each needle by length: a draft pass over 128k tokens takes a minute or two on a CPU.
SAMPLES = {4096: 6, 16384: 3, 65536: 1, 131072: 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ruler-data", type=Path, help="folder with RULER's essays; none: NVIDIA's wheel")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; a second run goes on from them")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(SAMPLES))
    parser.add_argument("--keep", type=int, default=1024)
    parser.add_argument("--embed-up-to", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    rows = needle_rows(args.out, args.ruler_data, args.lengths, args.keep, args.embed_up_to, args.seed)
    print(machine())
    print(f"at most {args.keep} tokens are kept; seed {args.seed}\n")
    print(table(*needle_table(rows)))


def needle_rows(
    out: Path, data: Path | None, lengths: Sequence[int], keep: int, embed_up_to: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each length, needle, sample and way: the share of the needles that is kept, and the seconds."""
    known = {(row["length"], row["task"], row["sample"], row["way"]): row for row in read_rows(out)}
    draft = load_model("default")
    others = {"MiniLM": EmbedderScorer(MiniLM.shared())} if MiniLM.installed() else {}
    found = []
    for length in lengths:
        for name in NEEDLES:
            ways: Mapping[str, Way] = ways_of(SpecPC(draft), others if length <= embed_up_to else {})
            numbers = range(SAMPLES.get(length, 2))
            keys = [(length, name, number, way) for number in numbers for way in ways]
            if all(key in known for key in keys):  # to make long samples takes minutes
                found += [known[key] for key in keys]
                continue
            samples = ruler_samples(name, length, draft.require_tokenizer(), len(numbers), seed, data)
            for number, sample in enumerate(samples):
                ways = ways_of(SpecPC(draft), others if length <= embed_up_to else {})
                for way, shorten in ways.items():
                    key = (length, name, number, way)
                    if key not in known:
                        known[key] = dict(zip(("length", "task", "sample", "way"), key, strict=True)) | measured(
                            sample, shorten, keep
                        )
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(known[key]) + "\n")
                    found.append(known[key])
    return found


def measured(sample: Mapping[str, Any], shorten: Way, keep: int) -> dict[str, Any]:
    """What one way keeps of a sample."""
    _, passages, query = split_prompt(sample["input"])
    task = Task("ruler", query, [None] * len(passages), passages, [], "")
    started = time.perf_counter()
    kept = "\n".join(shorten(task, keep))
    seconds = time.perf_counter() - started
    return {"kept": mean(answer in kept for answer in sample["outputs"]), "seconds": seconds}


def needle_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: by length the share of needles that each way keeps, and the seconds of the first way."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        mine = [row for row in rows if row["length"] == length]
        shares = [[row["kept"] for row in mine if row["way"] == way] for way in ways]
        seconds = mean(row["seconds"] for row in mine if row["way"] == ways[0])
        cells = [f"{100 * mean(values):.0f}" if values else "" for values in shares]
        lines.append([f"{length:,}", str(len(shares[0])), *cells, f"{seconds:.1f}"])
    return ["tokens", "prompts", *(f"{way}, %" for way in ways), f"{ways[0]}, s"], lines


if __name__ == "__main__":
    main()
