"""The same benchmark on two checkouts: `--against` of `benchmarks.serving` and `benchmarks.decode`.

Each run is a process of its own: this tree's file with the package and the `benchmarks.common` of one of the trees. A
checkout may be older than this module, so such a file imports it where it compares, not at its top.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import machine, table


@dataclass(frozen=True)
class Comparison:
    """What two trees' runs found.

    Attributes:
        median: Per tree, "this" and "other", and per number the median over its runs.
        ratio: Per number the median of the ratios of neighbouring runs, this tree over the other.
        repeats: Runs of each tree.
    """

    median: dict[str, dict[str, float]]
    ratio: dict[str, float]
    repeats: int

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps({**self.median, "ratio": self.ratio, "repeats": self.repeats, "machine": machine()})

    def table(self, unit: str) -> str:
        """A Markdown table, a row per number; `unit` heads their names."""
        this, other = self.median["this"], self.median["other"]
        cells = [
            [name, f"{this[name]:.2f}", f"{other[name]:.2f}", f"{ratio:.2f}"] for name, ratio in self.ratio.items()
        ]
        return table([unit, "this", "other", "ratio"], cells)


def options_of(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The command-line options that give a run the same values of `names`."""
    options: list[str] = []
    for name in names:
        value = getattr(args, name)
        options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return options


def compare(file: Path, against: Path, options: list[str], repeats: int) -> Comparison:
    """Run a benchmark on its own tree and on another in turns.

    Args:
        file: The benchmark, a file of this tree's `benchmarks`, as an absolute path. It prints, last, a line of JSON:
            floats by name, and "package", the folder that the package came from.
        against: The other checkout.
        options: Its command-line options; they make it print JSON.
        repeats: Runs of each tree.
    """
    trees = {"this": file.parent.parent, "other": against.resolve()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for repeat in range(repeats):
        # Turns change ends, so that neither tree always runs second.
        for name in list(trees)[:: 1 if repeat % 2 == 0 else -1]:
            runs[name].append(_run(file, trees[name], options))
            print(f"{name}: {json.dumps(runs[name][-1])}", file=sys.stderr, flush=True)
    names = [name for name, value in runs["this"][0].items() if isinstance(value, float)]
    median = {tree: {name: statistics.median(run[name] for run in runs[tree]) for name in names} for tree in trees}
    ratio = {
        name: statistics.median(a[name] / b[name] for a, b in zip(runs["this"], runs["other"], strict=True))
        for name in names
    }
    return Comparison(median, ratio, repeats)


def _run(file: Path, tree: Path, options: list[str]) -> dict[str, Any]:
    """The numbers of `file` in a process that imports the package from `tree`.

    Raises:
        RuntimeError: the process failed, or found the package elsewhere.
    """
    # Not "-m": that would put the working directory, and with it this tree's package, first.
    done = subprocess.run(
        [sys.executable, "-P", str(file), *options],
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the benchmark failed with the package of {tree}; its error is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if Path(found["package"]).parent != tree:
        raise RuntimeError(f"the package was to come from {tree} and came from {found['package']}")
    return found
