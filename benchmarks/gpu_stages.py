"""Stages of `benchmarks.gpu` with one request: first token, step and peak memory of each way to answer."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from draftapprox_integrations import SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPC, SpecPCConfig
from draftapprox_integrations.config import MethodConfig

from .gpu_models import Lab, Row, digits

_CONTACT = 8  # tokens of each way's first run, which warms up and shows the peak


def error_text(error: BaseException) -> str:
    """An error in one line; its traceback goes to stderr."""
    traceback.print_exception(error, limit=12, file=sys.stderr)
    return f"{type(error).__name__}: {error}"[:400]


@dataclass
class _Way:
    """Times of one way to answer."""

    run: Callable[[int], dict[str, float]]  # tokens to write -> seconds by step, "total" among them
    runs: list[dict[str, float]] = field(default_factory=list)
    row: Row = field(default_factory=dict)


class _Clock(BaseStreamer):
    """Streamer that notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def configs(lab: Lab, tokens: int) -> dict[str, MethodConfig]:
    """The methods that stand beside the full cache."""
    speckv = SpecKVConfig(max_capacity_prompt=lab.scale.budget, lookahead_tokens=lab.scale.steps)
    specpc = SpecPCConfig(max_capacity_prompt=tokens // 4)
    cascade = SpecKVPCConfig(specpc_config=specpc, speckv_config=speckv)
    return {"speckv": speckv, "speckvpc": cascade, "specpc": specpc}


def compare(lab: Lab, tokens: int, rounds: int) -> Iterator[Row]:
    """First token, step and peak of the full cache and of each method, their runs interleaved.

    The first token is the wall time of a request for one token, its whole lookahead included. A step of a method is
    what further tokens add to "decode".
    """
    ids = lab.prompt(tokens)
    ways: dict[str, _Way] = {}
    with ExitStack() as stack:
        before = lab.clean()
        times = _full(lab, ids, 1 + _CONTACT)
        ways["full"] = _Way(lambda new: {"total": _full(lab, ids, new)[-1]})
        ways["full"].row = {"step_ms": _step_of(times), "peak_gib": lab.peak_gib(before)}
        for name, config in configs(lab, tokens).items():
            try:
                before = lab.clean()
                kv = stack.enter_context(lab.engine(config, lab.draft))
                usage = lab.generate(kv, ids, _CONTACT)[1].usage
                ways[name] = _Way(partial(_timings, lab, kv, ids))
                ways[name].row = {"kept_kv_bytes": usage.kept_kv_bytes, "peak_gib": lab.peak_gib(before)}
            except Exception as error:
                yield {"way": name, "tokens": tokens, "error": error_text(error)}
        lab.clean()
        for _ in range(rounds):
            for way in ways.values():
                way.runs.append(way.run(1))
        for name, way in ways.items():
            median = {step: statistics.median(run[step] for run in way.runs) for step in way.runs[0]}
            row = {"way": name, "tokens": tokens, "first_s": digits(median["total"]), **way.row, "rounds": rounds}
            if name != "full":
                ratios = [a["total"] / b["total"] for a, b in zip(way.runs, ways["full"].runs, strict=True)]
                row["over_full"] = digits(statistics.median(ratios))
                row |= {f"{step}_s": digits(median[step]) for step in ("lookahead", "prefill")}
                more = (lab.scale.steps if name != "specpc" else lab.scale.steps // 2) - 1
                try:
                    row["step_ms"] = digits(1000 * (way.run(1 + more)["decode"] - median["decode"]) / more)
                except Exception as error:
                    row["error"] = error_text(error)
            yield row


@torch.inference_mode()
def _full(lab: Lab, ids: list[int], new: int) -> list[float]:
    """Seconds after which each token of `model.generate` arrives, and at last those of the whole call."""
    clock, model = _Clock(), lab.target.model
    lab.synchronize()
    started = time.perf_counter()
    model.generate(**lab.batch([ids]), max_new_tokens=new, do_sample=False, streamer=clock)  # type: ignore[operator]
    lab.synchronize()
    clock.times.append(time.perf_counter())
    return [moment - started for moment in clock.times[1:]]  # the first one is the prompt's


def _step_of(times: list[float]) -> float:
    """Milliseconds between tokens; the last number is the end of the call."""
    return digits(1000 * statistics.median(b - a for a, b in pairwise(times[:-1])))


def _timings(lab: Lab, kv: SpecKV, ids: list[int], new: int) -> dict[str, float]:
    seconds, generation = lab.generate(kv, ids, new)
    return {"lookahead": 0.0, "prefill": 0.0, **generation.timings, "total": seconds}


def draft(lab: Lab, tokens: int, rounds: int) -> Iterator[Row]:
    """The draft's lookahead and its scoring pass, beside a plain forward pass over the same prompt.

    The engine has the draft as its target too: that costs little, and its "lookahead" is the one of any target.
    """
    ids, ahead = lab.prompt(tokens), lab.scale.steps
    scorer = SpecPC(lab.draft, SpecPCConfig(max_capacity_prompt=tokens // 4))
    batch = lab.batch([ids])
    times: dict[str, list[float]] = {"forward": [], "scoring": [], "lookahead": []}
    config = SpecKVConfig(max_capacity_prompt=lab.scale.budget, lookahead_tokens=ahead)
    with lab.engine(config, lab.draft, lab.draft) as kv, torch.inference_mode():
        for _ in range(rounds + 1):  # the first round warms up
            times["forward"].append(lab.seconds(lambda: lab.draft.model(**batch, use_cache=False, logits_to_keep=1)))
            times["scoring"].append(lab.seconds(lambda: scorer.select([ids])))
            times["lookahead"].append(_timings(lab, kv, ids, 1)["lookahead"])
    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    yield {
        "tokens": tokens,
        "lookahead_tokens": ahead,
        **{f"{name}_s": digits(seconds) for name, seconds in median.items()},
        "scoring_over_forward": digits(median["scoring"] / median["forward"]),
        "step_ms": digits(1000 * (median["lookahead"] - median["forward"]) / ahead),
    }


def steps(lab: Lab, rounds: int) -> Iterator[Row]:
    """Decoding steps from equally many pairs, kept in each of the ways the cache knows, interleaved.

    A short prompt and no draft, because what is kept does not depend on them. A step is the difference between a long
    and a short answer, so that what is done once per request (the first token, a capture) is not counted.
    """
    scale = lab.scale
    ids = lab.prompt(max(scale.lengths[0] // 4, 2 * scale.budget))
    few, many = 1 + scale.steps // 4, 1 + scale.steps
    plain = SpecKVConfig(max_capacity_prompt=scale.budget, lookahead_tokens=0)
    variants: dict[str, SpecKVConfig] = {
        "uniform": plain,
        "adaptive": replace(plain, head_budgets="adaptive"),
        "int8": replace(plain, kv_quantization="int8"),
        "int4": replace(plain, kv_quantization="int4"),
    }
    engines: dict[str, SpecKV] = {}
    found: dict[str, list[float]] = {}
    size: dict[str, int | None] = {}
    with ExitStack() as stack:
        for name, config in variants.items():
            try:
                engines[name] = stack.enter_context(lab.engine(config))
                size[name] = lab.generate(engines[name], ids, few)[1].usage.kept_kv_bytes
                found[name] = []
            except Exception as error:
                yield {"way": name, "error": error_text(error)}
        for _ in range(rounds):
            for name, times in found.items():
                short, long = (_timings(lab, engines[name], ids, new)["decode"] for new in (few, many))
                times.append((long - short) / (many - few))
    for name, times in found.items():
        row: Row = {"way": name, "prompt": len(ids), "step_ms": digits(1000 * statistics.median(times))}
        row |= {"kept_kv_bytes": size[name], "rounds": rounds}
        if lab.copy_rate:
            floor = sum(p.nbytes for p in lab.target.model.parameters()) / lab.copy_rate
            row["over_floor"] = digits(statistics.median(times) / floor)
        if name != "uniform" and "uniform" in found:
            row["over_uniform"] = digits(statistics.median(a / b for a, b in zip(times, found["uniform"], strict=True)))
        yield row


def variants(lab: Lab, tokens: int, names: tuple[str, ...]) -> Iterator[Row]:
    """Other settings of SpecKV, each alone: first token, step, peak."""
    ids, ahead = lab.prompt(tokens), lab.scale.steps
    plain = SpecKVConfig(max_capacity_prompt=lab.scale.budget, lookahead_tokens=ahead)
    known: dict[str, tuple[SpecKVConfig, Any]] = {
        "snapkv": (replace(plain, lookahead_tokens=0), None),
        "adaptive": (replace(plain, head_budgets="adaptive"), lab.draft),
        "int8": (replace(plain, kv_quantization="int8"), lab.draft),
        "int4": (replace(plain, kv_quantization="int4"), lab.draft),
        "self": (plain, "self"),
    }
    for name in names:
        config, drafts = known[name]
        try:
            before = lab.clean()
            with lab.engine(config, drafts) as kv:
                short = _timings(lab, kv, ids, _CONTACT)
                long = _timings(lab, kv, ids, _CONTACT + ahead)
            step = (long["decode"] - short["decode"]) / ahead
            yield {
                "way": name,
                "tokens": tokens,
                "first_s": digits(min(short["total"] - (_CONTACT - 1) * step, long["total"] - long["decode"] + step)),
                "step_ms": digits(1000 * step),
                "lookahead_s": digits(long["lookahead"]),
                "prefill_s": digits(long["prefill"]),
                "peak_gib": lab.peak_gib(before),
            }
        except Exception as error:
            yield {"way": name, "tokens": tokens, "error": error_text(error)}


def sparse(lab: Lab, tokens: int, rounds: int) -> Iterator[Row]:
    """The sparse prefill beside the dense one, interleaved, without a draft."""
    part = min(2048, lab.scale.lengths[0] // 4)
    dense = SpecKVConfig(max_capacity_prompt=lab.scale.budget, lookahead_tokens=0)
    thin = replace(dense, prefill="sparse", prefill_window_size=part, prefill_vertical_size=part)
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    with lab.engine(dense) as a, lab.engine(thin) as b:
        for kv in (a, b):
            lab.generate(kv, lab.prompt(lab.scale.lengths[0]), 1)  # warms up
        for _ in range(rounds):
            for name, kv in (("dense", a), ("sparse", b)):
                times[name].append(_timings(lab, kv, lab.prompt(tokens), 1)["prefill"])
    ratios = [a / b for a, b in zip(times["sparse"], times["dense"], strict=True)]
    medians = {f"{name}_s": digits(statistics.median(found)) for name, found in times.items()}
    yield {"tokens": tokens, **medians, "sparse_over_dense": digits(statistics.median(ratios)), "rounds": rounds}


@torch.inference_mode()
def kvpress(lab: Lab, tokens: int) -> Iterator[Row]:
    """SnapKV of kvpress on the same model, with as many pairs; ImportError where kvpress is not installed."""
    press_class = import_module("kvpress").SnapKVPress
    model, batch = lab.target.model, lab.batch([lab.prompt(tokens)])
    press = press_class(compression_ratio=1 - lab.scale.budget / tokens, window_size=32)
    prefills: list[float] = []
    steps: list[float] = []
    before = lab.clean()
    for _ in range(2):
        cache = DynamicCache()
        with press(model):
            prefills.append(lab.seconds(partial(model.base_model, **batch, past_key_values=cache)))
        for position in range(tokens, tokens + 16):
            where = torch.tensor([[position]], device=lab.device)
            step = partial(model, batch["input_ids"][:, -1:], position_ids=where, past_key_values=cache)
            steps.append(lab.seconds(step))
    yield {
        "way": "kvpress_snapkv",
        "tokens": tokens,
        "prefill_s": digits(min(prefills)),
        "step_ms": digits(1000 * statistics.median(steps)),
        "peak_gib": lab.peak_gib(before),
        "kept": int(cache.get_seq_length()),
    }
