"""Milliseconds per decoded token through `SpecKV.generate`, and seconds to the first one, on a CPU.

    python -m benchmarks.decode                                   # most of an hour on 2 cores
    python -m benchmarks.decode --against ../other --repeats 3    # the same on two checkouts, in turns

Random ids as prompts, the embedded model in float32, made endless, one request at a time. "full" drops nothing, because
its budget is larger than the prompt; "SpecKV", "adaptive" (head_budgets) and "int8" (kv_quantization) keep --capacity
pairs per KV head, without a lookahead (SnapKV), so that no draft runs. "model.generate" is transformers by itself: with
--against it has to cost the same in both trees, and shows how far times can be trusted. A prompt within the capacity
loses nothing in any setting.

A decoded token costs, in "two answers", the difference of the whole times of an answer of 1 token and of one with
--steps more to the same prompt, divided by --steps. The prompt's work cancels out, but not its noise: that of two
prefills, behind a long prompt larger than the steps. "one answer" has none of it: it is the time from the first
token of the longer answer to its last, as a stopping criterion notes it, divided by --steps; "cpu" is the same in this
process's CPU time (with OMP_NUM_THREADS=1 what a time would be without the neighbours' work). "first" is the whole time
of the answer of 1 token.

Settings take turns within a process; numbers are medians. With --against, each repeat is a process per tree; ratios are
medians over the pairs of neighbouring runs, this tree over the other.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

import draftapprox_integrations
from benchmarks.common import machine, table
from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, load_model

_FILE = Path(__file__).resolve()
_WAYS = ("model.generate", "full", "SpecKV", "adaptive", "int8")
_NAMES = ("two answers", "one answer", "one answer, cpu")
_FIRST = ("full", "SpecKV")  # ways whose first token is reported

# Writes `new` tokens after a prompt, and returns the seconds that it took and how many tokens came.
Answer = Callable[[list[int], int, "Clock"], tuple[float, int]]


class Clock(StoppingCriteria):
    """Notes when each token was chosen, and stops nothing.

    Attributes:
        times, worked: Seconds of `time.perf_counter` and of `time.process_time`, one per token.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.worked: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        self.times.append(time.perf_counter())
        self.worked.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8000], help="lengths of the prompts")
    parser.add_argument("--steps", type=int, default=32, help="tokens that the longer answer has more")
    parser.add_argument("--capacity", type=int, default=512, help="KV pairs per head, of all but the full cache")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON line, and nothing else")
    parser.add_argument("--against", type=Path, help="another checkout, to compare this one with")
    args = parser.parse_args()
    if args.against is not None:
        compare(args)
        return
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(_about(args))
    cells = []
    for tokens in args.tokens:
        for name in _NAMES:
            cells.append([f"{tokens:,}, {name}", *(f"{found[_step(tokens, way, name)]:.1f}" for way in _WAYS)])
    print(f"\nms per token:\n\n{table(['prompt', *_WAYS], cells)}")
    cells = [[f"{tokens:,}", *(f"{found[_first(tokens, way)]:.2f}" for way in _FIRST)] for tokens in args.tokens]
    print(f"\ns to the first token:\n\n{table(['prompt', *_FIRST], cells)}")


def _about(args: argparse.Namespace) -> str:
    return f"{machine()}\n{args.capacity} pairs, {args.steps} steps, {args.repeats} runs each"


def _step(tokens: int, way: str, name: str) -> str:
    return f"{tokens} tokens, {way}, {name}, ms"


def _first(tokens: int, way: str) -> str:
    return f"{tokens} tokens, {way}, first, s"


# ------------------------------------------------------------------ one tree


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this process."""
    loaded = load_model("default", dtype="float32")
    # In the model and not as an option: the same for every way.
    assert loaded.model.generation_config is not None
    loaded.model.generation_config.eos_token_id = None
    loaded.model.generation_config.pad_token_id = 0
    found: dict[str, Any] = {"package": str(Path(draftapprox_integrations.__file__).parent), "machine": machine()}
    for tokens in args.tokens:
        found |= measure_prompt(loaded, _prompt(tokens), args.steps, args.capacity, args.repeats)
    return found


def measure_prompt(loaded: LoadedModel, prompt: list[int], steps: int, capacity: int, repeats: int) -> dict[str, float]:
    """Milliseconds per token of every way, and seconds to the first token, after one prompt."""
    config = SpecKVConfig(max_capacity_prompt=capacity, lookahead_tokens=0)
    configs = {
        "full": replace(config, max_capacity_prompt=len(prompt) + 1),
        "SpecKV": config,
        "adaptive": replace(config, head_budgets="adaptive"),
        "int8": replace(config, kv_quantization="int8"),
    }
    engines = {way: SpecKV(loaded, None, config) for way, config in configs.items()}
    answers: dict[str, Answer] = {way: _engine_answer(engine) for way, engine in engines.items()}
    answers["model.generate"] = _plain_answer(loaded)
    for way in _WAYS:
        _timed(answers[way], _prompt(capacity + 40), 4)  # warms up
    times: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for way in _WAYS[:: 1 if repeat % 2 == 0 else -1]:
            first, *_ = _timed(answers[way], prompt, 1)
            whole, decoding, worked = _timed(answers[way], prompt, 1 + steps)
            for name, seconds in zip(_NAMES, (whole - first, decoding, worked), strict=True):
                times.setdefault(_step(len(prompt), way, name), []).append(1000 * seconds / steps)
            if way in _FIRST:
                times.setdefault(_first(len(prompt), way), []).append(first)
    for engine in engines.values():
        engine.close()
    return {name: statistics.median(values) for name, values in times.items()}


def _engine_answer(engine: SpecKV) -> Answer:
    def answer(prompt: list[int], new: int, clock: Clock) -> tuple[float, int]:
        (made,) = engine.generate(prompt, max_new_tokens=new, stopping_criteria=[clock])
        return made.timings["total"], len(made.token_ids)

    return answer


def _plain_answer(loaded: LoadedModel) -> Answer:
    model: Any = loaded.model

    @torch.inference_mode()
    def answer(prompt: list[int], new: int, clock: Clock) -> tuple[float, int]:
        ids = torch.tensor([prompt], device=loaded.device)
        options = {"max_new_tokens": new, "do_sample": False, "stopping_criteria": [clock]}
        started = time.perf_counter()
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - started, made.shape[1] - len(prompt)

    return answer


def _timed(answer: Answer, prompt: list[int], new: int) -> tuple[float, float, float]:
    """Seconds of a whole answer; those from its first token to its last; the CPU's of these."""
    clock = Clock()
    seconds, written = answer(prompt, new, clock)
    if not written == len(clock.times) == new:
        raise AssertionError(f"{new} tokens were asked for, {written} came, {len(clock.times)} were timed")
    return seconds, clock.times[-1] - clock.times[0], clock.worked[-1] - clock.worked[0]


def _prompt(tokens: int) -> list[int]:
    rng = random.Random(tokens)
    return [rng.randrange(1000, 40_000) for _ in range(tokens)]


# ------------------------------------------------------------------ two trees


def compare(args: argparse.Namespace) -> None:
    """Run both trees in turns, and print medians and the medians of their ratios."""
    from benchmarks import trees  # not at the top: the other tree may not have it

    options = ["--json", "--repeats", "1", *trees.options_of(args, ("tokens", "steps", "capacity"))]
    found = trees.compare(_FILE, args.against, options, args.repeats)
    if args.json:
        print(found.json())
        return
    print(_about(args))
    print(f"other: {args.against}\n")
    print(found.table("prompt, way"))


if __name__ == "__main__":
    main()
