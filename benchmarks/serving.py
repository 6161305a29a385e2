"""Serving on a CPU: requests that arrive one after the other, and a short one that arrives behind long ones.

    python -m benchmarks.serving                                  # a few minutes on 2 cores
    python -m benchmarks.serving --against ../other --repeats 3   # the same load on two checkouts, in turns

Random ids as prompts, the embedded model as target and draft, in float32, made endless, so that every request writes as
many tokens as it asked for. Short prompts fit the budget, long ones do not. "static" is one `SpecKV.generate` call with
all prompts, which cannot begin before the last one is there; "plain" is `model.generate`, one request after
the other. Both count the tokens that were asked for, and none of the time before they begin. "first" is the time to the
first text, "whole" the time to the end of the answer.

The short request arrives when a long one has begun to write: with a row of the batch to spare, and with none. With
--against, each run is a process of its own with the other checkout's package (and this file); ratios are medians over
the pairs of neighbouring runs, this tree over the other. "cpu" is the same in seconds of this process's CPU time: with
OMP_NUM_THREADS=1 it is what a time would be on a machine of one's own, where wall times also show the neighbours' work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import draftapprox_integrations
from benchmarks.common import machine, table
from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, load_model

_FILE = Path(__file__).resolve()


@dataclass
class Call:
    """One request of the load.

    Attributes:
        prompt: Token ids.
        new: Tokens to write.
        arrives: Seconds after the start of the run.
        first, whole: Seconds from its arrival to the first text and to the end of its answer.
        written: Tokens that came.
    """

    prompt: list[int]
    new: int
    arrives: float
    first: float = 0.0
    whole: float = 0.0
    written: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--gap", type=float, default=0.5, help="mean seconds between arrivals")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--max-batch-size", type=int, default=4)
    parser.add_argument("--longest", type=int, default=1200, help="tokens of the longest prompts")
    parser.add_argument("--new", type=int, nargs=2, default=[8, 64], help="fewest and most tokens of an answer")
    parser.add_argument("--long", type=int, nargs=2, default=[1500, 200], help="prompt and answer of the long requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-baselines", action="store_true", help="neither static nor plain")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON line, and nothing else")
    parser.add_argument("--against", type=Path, help="another checkout, to compare this one with")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs with --against")
    args = parser.parse_args()
    if args.against is not None:
        compare(args)
        return
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(machine())
    print(f"{args.requests} requests, {args.max_batch_size} in a batch, {args.budget} pairs; {_load_average()}\n")
    rows = [[name, f"{value:.2f}"] for name, value in found.items() if isinstance(value, float)]
    print(table(["", "s, or tokens/s"], rows))


# ------------------------------------------------------------------ one tree


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this process: rates in tokens per second, the others in seconds."""
    loaded = load_model("default", dtype="float32")
    # In the model and not as an option of each request: before continuous batching those shared no batch.
    assert loaded.model.generation_config is not None
    loaded.model.generation_config.eos_token_id = None
    loaded.model.generation_config.pad_token_id = 0
    kv = SpecKV(loaded, loaded, SpecKVConfig(max_capacity_prompt=args.budget), max_batch_size=args.max_batch_size)
    kv.generate(_prompt(random.Random(1), args.budget + 40), max_new_tokens=4)  # warms up
    calls = load(args)
    found: dict[str, Any] = {"package": str(Path(draftapprox_integrations.__file__).parent), "machine": machine()}
    worked = time.process_time()
    found["rate"] = serve(kv, calls)
    worked = time.process_time() - worked
    for name, times in (("first", [call.first for call in calls]), ("whole", [call.whole for call in calls])):
        found |= {f"{name} p50": quantile(times, 0.5), f"{name} p99": quantile(times, 0.99)}
    found["tokens"] = sum(call.written for call in calls)
    found["rate, cpu"] = found["tokens"] / worked
    if not args.no_baselines:
        found["static rate"] = static_rate(kv, calls)
        found["plain rate"] = plain_rate(loaded, calls)
    for name, longs in (("alone", 0), ("a row to spare", args.max_batch_size - 1), ("batch full", args.max_batch_size)):
        found[f"short, {name}"], found[f"short, {name}, cpu"] = behind(kv, args, longs)
    kv.close()
    return found


def load(args: argparse.Namespace) -> list[Call]:
    """The requests: every second prompt fits the budget; gaps between arrivals are exponential."""
    rng = random.Random(args.seed)
    calls, arrives = [], 0.0
    for index in range(args.requests):
        bounds = (20, args.budget) if index % 2 else (args.budget + 40, max(args.longest, args.budget + 40))
        calls.append(Call(_prompt(rng, rng.randint(*bounds)), rng.randint(*args.new), arrives))
        arrives += rng.expovariate(1 / args.gap)
    return calls


def serve(kv: SpecKV, calls: list[Call]) -> float:
    """Submit each request when it arrives, fill in its times, and return the tokens per second of the whole run."""
    readers = []
    started = time.perf_counter()
    for call in calls:
        time.sleep(max(0.0, call.arrives - (time.perf_counter() - started)))
        readers.append(threading.Thread(target=_read, args=(kv, call)))
        readers[-1].start()
    for reader in readers:
        reader.join()
    seconds = time.perf_counter() - started
    for call in calls:
        if call.written != call.new:
            raise AssertionError(f"{call.new} tokens were asked for, {call.written} came")
    return sum(call.written for call in calls) / seconds


def _read(kv: SpecKV, call: Call) -> None:
    """Submit one request and read its text."""
    started = time.perf_counter()
    (stream,) = kv.submit(call.prompt, max_new_tokens=call.new)
    for _ in stream.pieces():
        call.first = call.first or time.perf_counter() - started
    call.whole = time.perf_counter() - started
    call.first = call.first or call.whole
    assert stream.generation is not None
    call.written = len(stream.generation.token_ids)


def static_rate(kv: SpecKV, calls: list[Call]) -> float:
    """Tokens per second of one call with all prompts, each of which writes as much as the longest answer."""
    started = time.perf_counter()
    kv.generate([call.prompt for call in calls], max_new_tokens=max(call.new for call in calls))
    return sum(call.new for call in calls) / (time.perf_counter() - started)


@torch.inference_mode()
def plain_rate(loaded: LoadedModel, calls: list[Call]) -> float:
    """Tokens per second of `model.generate`, one request after the other."""
    model: Any = loaded.model
    started = time.perf_counter()
    for call in calls:
        ids = torch.tensor([call.prompt], device=loaded.device)
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=call.new, do_sample=False)
    return sum(call.new for call in calls) / (time.perf_counter() - started)


def behind(kv: SpecKV, args: argparse.Namespace, longs: int) -> tuple[float, float]:
    """Seconds, and those of the CPU, until the answer of a short request that arrives while `longs` long ones run."""
    rng = random.Random(args.seed + 1)
    tokens, new = args.long
    # Answers of different lengths, as they are: a batch that frees its rows one by one has one free earlier.
    streams = [kv.submit(_prompt(rng, tokens), max_new_tokens=new + 20 * i)[0] for i in range(longs)]
    pieces = streams[0].pieces() if streams else iter(())  # kept: an iterator that goes cancels its request
    next(pieces, None)
    started, worked = time.perf_counter(), time.process_time()
    kv.submit(_prompt(rng, 30), max_new_tokens=8)[0].result()
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    for stream in streams:
        stream.cancel()
    while not kv.is_idle:
        time.sleep(0.01)
    return seconds, worked


def _load_average() -> str:
    """The machine's other work, as far as it is known: above its cores, wall times say little."""
    return f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"


def _prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(1000, 40_000) for _ in range(tokens)]


def quantile(numbers: list[float], share: float) -> float:
    """The smallest number that at least `share` of all do not exceed."""
    return sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]


# ------------------------------------------------------------------ two trees


def compare(args: argparse.Namespace) -> None:
    """Run both trees in turns, and print medians and the medians of their ratios."""
    from benchmarks import trees  # not at the top: the other tree may not have it

    names = ("requests", "gap", "budget", "max_batch_size", "longest", "seed", "new", "long")
    options = ["--json", "--no-baselines", *trees.options_of(args, names)]
    found = trees.compare(_FILE, args.against, options, args.repeats)
    if args.json:
        print(found.json())
        return
    print(machine())
    print(f"{args.requests} requests, {args.max_batch_size} in a batch, {args.repeats} runs each; {_load_average()}")
    print(f"other: {args.against}\n")
    print(found.table("s; rate in tokens/s"))


if __name__ == "__main__":
    main()
