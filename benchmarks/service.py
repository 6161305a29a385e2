"""What the service costs: one warm compression through `SpecPC(url)` beside the same one in this process.

    python -m benchmarks.service

A uvicorn server in a thread of this process has the compressor that is also called directly, in turns. "compress" is
the time that the result itself tells; "outside" is what a call takes beside it: for the service JSON on both sides,
HTTP over loopback, validation, the queue and threads. The difference of the two "outside" columns is the overhead; that
of the "whole" columns has the noise of the compressions in it. "CPU" is the process's CPU time, client and service
together: with OMP_NUM_THREADS=1 it shows the overhead where wall times show the neighbours' work. "route" asks
/v1/info, which computes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence

from draftapprox_integrations import CompressionResult, SpecPC
from draftapprox_integrations.serving.app import create_app
from draftapprox_integrations.serving.server import ServiceServer
from draftapprox_integrations.serving.settings import ServiceSettings
from draftapprox_integrations.specpc.remote import RemoteDraft

from .common import machine, table

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
    app, ready = create_app(local, ServiceSettings(port=0)), threading.Event()
    server = ServiceServer(app, lambda _: ready.set())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server.listening]})
    thread.start()
    ready.wait()
    remote = SpecPC(server.url)

    def compress(compressor: SpecPC) -> CompressionResult:
        return compressor.compress(passages, QUESTION, max_tokens=args.max_tokens)

    result = compress(local)  # reads the passages; from now on they are in the store
    warm = (compress(local), compress(remote))
    assert warm[0].passages == warm[1].passages
    here: list[tuple[float, float, float]] = []
    there: list[tuple[float, float, float]] = []
    for _ in range(args.runs):
        here.append(timed(lambda: compress(local)))
        there.append(timed(lambda: compress(remote)))
    route = [seconds_of_info(remote) for _ in range(args.runs)]
    server.should_exit = True
    thread.join()

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
    print(table(["ms", "whole, p50", "p99", "outside, p50", "p99", "CPU, p50", "p99"], rows))
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


def timed(call: Callable[[], CompressionResult]) -> tuple[float, float, float]:
    """Seconds of a call, those outside the compression, and those of the CPU."""
    started, worked = time.perf_counter(), time.process_time()
    result = call()
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return seconds, seconds - result.timings["total"], worked


def seconds_of_info(remote: SpecPC) -> float:
    """Seconds of a request that computes nothing."""
    assert isinstance(remote.draft, RemoteDraft)
    started = time.perf_counter()
    remote.draft.info()
    return time.perf_counter() - started


def columns_of(times: list[tuple[float, float, float]]) -> list[float]:
    """Milliseconds: median and 99th percentile of each column."""
    return [1000 * quantile(column, share) for column in zip(*times, strict=True) for share in (0.5, 0.99)]


def quantile(numbers: Sequence[float], share: float) -> float:
    """The smallest number that at least `share` of all do not exceed."""
    return sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]


if __name__ == "__main__":
    main()
