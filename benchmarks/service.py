"""What the service costs: one warm compression through `SpecPC(url)` beside the same one in this process.

    python -m benchmarks.service

`draftapprox serve` runs in a process of its own, with the draft that this process has too; the two are called in turns.
"outside" is what a call takes beside the time that its result tells for the compression: for the service JSON on both
sides, HTTP over loopback, validation, the queue and threads. The difference of the "outside" columns is the overhead;
that of the "whole" columns has the noise of two processes' compressions in it. "route" asks /v1/info, which computes
nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from draftapprox_integrations import CompressionResult, SpecPC
from draftapprox_integrations.specpc.remote import RemoteDraft

from .common import machine, table

_SERVE = (
    "import sys; from draftapprox_integrations.cli.app import app; app(['serve', '--port=0', '--draft', sys.argv[1]])"
)
QUESTION = "In which year was the stone bridge opened?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="default")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--sentences", type=int, default=6, help="of each passage")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=100)
    args = parser.parse_args()

    local = SpecPC(args.draft)
    passages = texts(args.passages, args.sentences)
    server = subprocess.Popen([sys.executable, "-c", _SERVE, args.draft], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    remote = SpecPC(server.stdout.readline().split()[-1])

    def compress(compressor: SpecPC) -> CompressionResult:
        return compressor.compress(passages, QUESTION, max_tokens=args.max_tokens)

    result = compress(local)  # reads the passages; from now on they are in the store
    compress(remote)
    warm = (compress(local), compress(remote))
    assert warm[0].passages == warm[1].passages
    here: list[tuple[float, float]] = []
    there: list[tuple[float, float]] = []
    for _ in range(args.runs):
        here.append(timed(lambda: compress(local)))
        there.append(timed(lambda: compress(remote)))
    route = [seconds_of_info(remote) for _ in range(args.runs)]
    server.terminate()
    assert server.wait() == 0

    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    size = len(json.dumps(warm[1].to_dict(full=True)))
    print(f"{machine()}; {load}")
    print(
        f"draft {result.draft}, {args.passages} passages, {result.tokens_before:,} tokens to {result.tokens_after}, "
        f"answer {size / 1024:.0f} KiB, {args.runs} runs each\n"
    )
    columns = [columns_of(here), columns_of(there)]
    columns.append([b - a for a, b in zip(*columns, strict=True)])
    names = ("in this process", "through the service", "difference")
    rows = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, columns, strict=True)]
    print(table(["ms", "whole, p50", "p99", "outside, p50", "p99"], rows))
    print(f"\nroute: p50 {1000 * quantile(route, 0.5):.2f} ms, p99 {1000 * quantile(route, 0.99):.2f} ms")


def texts(passages: int, sentences: int) -> list[str]:
    """Passages of invented sentences, no two alike."""
    made = []
    for p in range(passages):
        lines = [
            f"In {1700 + 13 * p + s} the council of ward {p} had house number {s} by the river repaired and painted."
            for s in range(sentences)
        ]
        made.append(" ".join(lines))
    made[passages // 2] += " The stone bridge was opened in 1932."
    return made


def timed(call: Callable[[], CompressionResult]) -> tuple[float, float]:
    """Seconds of a call, and those outside the compression."""
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return seconds, seconds - result.timings["total"]


def seconds_of_info(remote: SpecPC) -> float:
    """Seconds of a request that computes nothing."""
    assert isinstance(remote.draft, RemoteDraft)
    started = time.perf_counter()
    remote.draft.info()
    return time.perf_counter() - started


def columns_of(times: list[tuple[float, float]]) -> list[float]:
    """Milliseconds: median and 99th percentile of each column."""
    return [1000 * quantile(column, share) for column in zip(*times, strict=True) for share in (0.5, 0.99)]


def quantile(numbers: Sequence[float], share: float) -> float:
    """The smallest number that at least `share` of all do not exceed."""
    return sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]


if __name__ == "__main__":
    main()
