"""Stages of `benchmarks.gpu` below the engine: a captured step beside an eager one, kernels beside PyTorch forms."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from .gpu_models import Lab, Row, digits, weight_bytes
from .gpu_stages import error_text

_REPEATS = 15


def captured(lab: Lab) -> Iterator[Row]:
    """A step of transformers' own forward pass, launched kernel by kernel and replayed as one CUDA graph.

    The target over as many pairs as SpecKV keeps, the draft over a whole prompt. No engine is involved: this is what is
    left when launching costs nothing.
    """
    for way, model, pairs in (
        ("target", lab.target.model, lab.scale.budget),
        ("draft", lab.draft.model, lab.judged),
    ):
        yield {"way": way, "pairs": pairs, **_captured_step(lab, model, pairs)}


@torch.inference_mode()
def _captured_step(lab: Lab, model: PreTrainedModel, pairs: int) -> Row:
    """Median times of a step; the step feeds its own token, so a replay goes on where the last one ended."""
    slots = pairs + 4 * _REPEATS
    # transformers compiles nothing here, and marks the cache for a compiler that does not run.
    cache = StaticCache(config=model.config, max_cache_len=slots)
    ids = torch.tensor([lab.prompt(pairs)], device=lab.device)
    token = model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    position = torch.full((1, 1), pairs, device=lab.device)
    slot = torch.arange(slots, device=lab.device)

    def step() -> None:
        mask = (slot <= position)[None, None]
        out = model(token, position_ids=position, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        token.copy_(out.logits.argmax(-1))
        position.add_(1)

    row: Row = {"eager_ms": _median_ms(lab, step), "weights_gb": digits(weight_bytes(model) / 1e9)}
    if lab.device.type != "cuda":
        return row | {"captured_ms": None, "note": "graphs need CUDA"}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture asks for it: libraries get their workspaces here
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            step()

    row["capture_s"] = digits(lab.seconds(capture))
    row["captured_ms"] = _median_ms(lab, graph.replay)
    if lab.copy_rate:
        row["captured_over_floor"] = digits(row["captured_ms"] / (1000 * weight_bytes(model) / lab.copy_rate))
    return row


def kernels(lab: Lab) -> Iterator[Row]:
    """Every form of each kernel that the package has, on the target's shapes.

    A form is a public function of the kernel's module. Its arguments are found by name, so that the benchmark runs with
    other versions of the package; a form that asks for something else is named as skipped.
    """
    package = import_module("draftapprox_integrations.kernels")
    for name in ("decode_attention", "tail_scores", "vertical_slash"):
        try:
            module = import_module(f"{package.__name__}.{name}")
        except ImportError as error:
            yield {"kernel": name, "skipped": str(error)}
            continue
        given = _arguments(lab, name)
        for form, function in _forms(module, name).items():
            if lab.device.type != "cuda" and "triton" in form:
                continue
            wanted = inspect.signature(function).parameters.values()
            missing = [p.name for p in wanted if p.default is p.empty and p.name not in given]
            row: Row = {"kernel": name, "form": form, "tokens": given["tokens"]}
            if missing:
                yield row | {"skipped": f"unknown arguments: {', '.join(missing)}"}
                continue
            call = partial(function, **{p.name: given[p.name] for p in wanted if p.name in given})
            try:
                calls = min(50, max(1, int(5 / _median_ms(lab, call))))  # a short one is launched several times
                yield row | {"ms": digits(_median_ms(lab, lambda: [call() for _ in range(calls)]) / calls)}  # noqa: B023
            except Exception as error:
                yield row | {"error": error_text(error)}


def _forms(module: ModuleType, name: str) -> dict[str, Callable[..., Any]]:
    """The functions of a kernel's module that are called after it: `name`, `name_torch`, `reference_name`, ..."""
    return {
        form: function
        for form, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and name in form and not form.startswith("_")
    }


def _arguments(lab: Lab, name: str) -> dict[str, Any]:
    """Arguments by the names that the package uses for them."""
    config = lab.target.model.config
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    size = int(config.hidden_size) // heads
    tokens = lab.scale.budget if name == "decode_attention" else lab.judged
    tail = {"decode_attention": 1, "tail_scores": 8 + lab.scale.steps, "vertical_slash": tokens}[name]
    window = min(2048, tokens // 4)
    batch = () if name == "vertical_slash" else (1,)

    def random(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, dtype=lab.target.dtype, device=lab.device)

    query, key, value = random(heads, tail, size), random(kv_heads, tokens, size), random(kv_heads, tokens, size)
    columns = torch.stack([torch.randperm(tokens - window)[:window].sort().values for _ in range(kv_heads)])
    lengths = torch.full((1,), tokens, device=lab.device)
    return {
        "tokens": tokens, "query": query, "queries": query, "key": key, "keys": key, "value": value, "values": value,
        "columns": columns.to(lab.device), "window": window, "scaling": size**-0.5, "scale": size**-0.5, "mask": None,
        "rows": tail, "tail": tail, "lengths": lengths,
    }  # fmt: skip


def _median_ms(lab: Lab, run: Callable[[], object]) -> float:
    times = [lab.seconds(run) for _ in range(_REPEATS + 2)][2:]  # the first two warm up
    return digits(1000 * statistics.median(times))
