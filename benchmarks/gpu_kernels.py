"""Stages of `benchmarks.gpu` below the engine: a captured step beside an eager one, kernels beside PyTorch forms."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
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
    """Each kernel of the package beside its PyTorch form, and beside SDPA over the same numbers, on the target's
    shapes.

    Arguments are found by name, so that the benchmark runs with other versions of the package; a form that asks for
    something else is named as skipped. On a CPU both forms are the same.
    """
    package = import_module("draftapprox_integrations.kernels").__name__
    for name, tokens in (
        ("decode_attention", lab.scale.budget),
        ("decode_attention", lab.judged),
        ("tail_scores", lab.judged),
        ("vertical_slash", lab.judged),
    ):
        try:
            module = import_module(f"{package}.{name}")
        except ImportError as error:
            yield {"kernel": name, "skipped": str(error)}
            continue
        given = _arguments(lab, name, tokens)
        forms = {form: getattr(module, form) for form in (name, "torch_form") if hasattr(module, form)}
        if name != "tail_scores":  # that one returns what SDPA does not
            forms["sdpa"] = _sdpa
        for form, function in forms.items():
            wanted = inspect.signature(function).parameters.values()
            missing = [p.name for p in wanted if p.default is p.empty and p.name not in given]
            row: Row = {"kernel": name, "form": form, "tokens": tokens}
            if missing:
                yield row | {"skipped": f"unknown arguments: {', '.join(missing)}"}
                continue
            call = partial(function, **{p.name: given[p.name] for p in wanted if p.name in given})
            try:
                yield row | {"ms": _each_ms(lab, call)}
            except Exception as error:
                yield row | {"error": error_text(error)}


def _arguments(lab: Lab, name: str, tokens: int) -> dict[str, Any]:
    """Arguments by the names that the package uses for them."""
    config = lab.target.model.config
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    size, window = int(config.hidden_size) // heads, min(2048, tokens // 4)
    queries = {"decode_attention": 1, "tail_scores": 8 + lab.scale.steps, "vertical_slash": tokens}[name]

    def random(*shape: int) -> Tensor:
        return torch.randn(1, *shape, dtype=lab.target.dtype, device=lab.device)

    query, key, value = random(heads, queries, size), random(kv_heads, tokens, size), random(kv_heads, tokens, size)
    columns = [torch.randperm(tokens - window)[:window].sort().values for _ in range(kv_heads)]
    given: dict[str, Any] = {
        "whole": (query, key, value),
        "query": query,
        "key": key,
        "value": value,
        "scaling": size**-0.5,
    }
    if name == "vertical_slash":
        given |= {"query": query[0], "key": key[0], "value": value[0]}
        given |= {"columns": torch.stack(columns).to(lab.device), "window": window}
    elif name == "tail_scores":
        given |= {"first_keys": torch.zeros(1, dtype=torch.long, device=lab.device), "columns": tokens - queries}
        given |= {"query_weights": torch.ones(1, queries, device=lab.device), "reduction": "max"}
    else:
        lengths = torch.tensor([tokens], device=lab.device)
        pairs_of = import_module("draftapprox_integrations.kernels.pairs").pairs_of
        given |= {"query": query[:, :, 0], "parts": [pairs_of(key, value, lengths)]}
    return given


def _sdpa(whole: tuple[Tensor, Tensor, Tensor], scaling: float) -> Tensor:
    query, key, value = whole
    causal = query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling, enable_gqa=True)


def _median_ms(lab: Lab, run: Callable[[], object]) -> float:
    first = [lab.seconds(run) for _ in range(2)]  # warms up
    times = [lab.seconds(run) for _ in range(_REPEATS if first[1] < 0.1 else 3)]
    return digits(1000 * statistics.median(times))


def _each_ms(lab: Lab, run: Callable[[], object]) -> float:
    """Median time of one of several calls in a row, so that a short kernel does not wait for the next launch."""
    single = _median_ms(lab, run)
    calls = min(50, int(5 / single))
    return single if calls < 2 else digits(_median_ms(lab, lambda: [run() for _ in range(calls)]) / calls)
