"""What the rows of `benchmarks.gpu` must show: each ratio beside its limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .gpu_models import Row, Scale

# Peaks of kvpress 0.5.5's SnapKV (530 pairs) in GiB, target of 14B shapes, by prompt length. It needs transformers
# below 5.3, so it does not run beside this package; recorded on an H200 with transformers 5.2.
_RECORDED_PEAK = {8192: 1.04, 32_768: 3.89, 65_536: 7.69}


def verdicts(rows: Sequence[Row], scale: Scale) -> Iterator[Row]:
    """One row per claim: its name, the measured value, the limit, and whether it holds.

    "value" is None where nothing was measured; "pass" is None there, and at a size that the claims do not speak of.
    """
    judged, longest = scale.lengths[len(scale.lengths) // 2], scale.lengths[-1]

    def value(key: str, **where: Any) -> float | None:
        return next((row[key] for row in rows if row.get(key) is not None and where.items() <= row.items()), None)

    def compared(way: str) -> float | None:
        return value("over_full", stage=f"compare {judged}", way=way)

    theirs, source = value("peak_gib", way="kvpress_snapkv", tokens=judged), "kvpress's SnapKV"
    if theirs is None and scale.target == "14b":
        theirs, source = _RECORDED_PEAK.get(judged), "kvpress's SnapKV (recorded)"

    def peak(way: str, stage: str) -> float | None:
        ours = value("peak_gib", stage=stage, way=way, tokens=judged)
        return None if ours is None or theirs is None else ours / theirs

    def lookahead() -> float | None:
        found = value("lookahead_s", stage=f"compare {judged}", way="speckv")
        return value("lookahead_s", stage="draft", tokens=judged) if found is None else found

    def serving() -> float | None:
        rates = [row["tokens_per_s"] for row in rows if row.get("way") == "submit" and "tokens_per_s" in row]
        full = value("tokens_per_s", way="model.generate")
        return None if not rates or full is None else max(rates) / full

    claims: list[tuple[str, float | None, float]] = [
        (f"first token of SpecKV over the full cache, {judged}", compared("speckv"), 1.25),
        (f"first token of SpecKV-PC over the full cache, {judged}", compared("speckvpc"), 0.40),
        (f"first token of SpecPC at 25% over the full cache, {judged}", compared("specpc"), 0.15),
        (f"seconds of the draft's lookahead, {judged}", lookahead(), 0.35),
        ("step over weights / copy rate", value("over_floor", stage="steps", way="uniform"), 1.6),
        ("step with adaptive budgets over uniform", value("over_uniform", stage="steps", way="adaptive"), 1.15),
        ("step with int8 over the model's dtype", value("over_uniform", stage="steps", way="int8"), 1.15),
        (f"sparse prefill over dense, {longest}", value("sparse_over_dense", stage="sparse", tokens=longest), 0.75),
        (f"peak of SpecKV over {source}, {judged}", peak("speckv", f"compare {judged}"), 1.02),
        (f"peak of SnapKV over {source}, {judged}", peak("snapkv", "snapkv"), 1.02),
    ]
    for name, measured, limit in claims:
        yield _verdict(name, measured, f"<= {limit}", measured is not None and measured <= limit, scale.judge)
    rate = serving()
    yield _verdict("tokens per second over model.generate", rate, ">= 2.0", rate is not None and rate >= 2, scale.judge)


def _verdict(name: str, measured: float | None, limit: str, holds: bool, judge: bool) -> Row:
    value = None if measured is None else round(measured, 3)
    return {"claim": name, "value": value, "limit": limit, "pass": holds if judge and value is not None else None}


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
