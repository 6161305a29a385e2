"""Rows of JSON lines that a killed run goes on from, and the budgets of kvpress; needs no package but Python's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if it is missing; a line that was cut off by a kill is removed from it."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def ratio_for(tokens: int, budget: int) -> float:
    """The compression ratio with which kvpress keeps `budget` of `tokens` pairs per head; 0 where all fit.

    kvpress keeps `int(tokens * (1 - ratio))`. With `1 - budget / tokens` that product often lies just below the budget,
    and one pair fewer would be kept.

    Raises:
        ValueError: the budget is less than one pair.
    """
    if budget < 1:
        raise ValueError(f"a budget is at least 1 pair; got {budget}")
    return 0.0 if budget >= tokens else 1 - (budget + 1e-6) / tokens
