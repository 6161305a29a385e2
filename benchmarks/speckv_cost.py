"""SpecKV's cost: prefill against a plain one, decoding against the full cache, KV bytes, peak memory.

    python -m benchmarks.speckv_cost --tokens 1024 4096 8000

Random prompts, the embedded model, a given lookahead of 24 tokens (drafting time is not included). Runs are interleaved
in one process; the tables show medians of times and of ratios of neighbouring runs. Decoding is `model.generate` from a
full cache, from SpecKV's, from a plain cache of a prompt as short as what SpecKV keeps, and from SpecKV's with shared
head budgets of the same total (head_budgets="adaptive").
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from draftapprox_integrations import SpecKVConfig, load_model
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache.ragged import decoding_model
from draftapprox_integrations.speckv.prefill import prefill

from .common import machine, table
from .specpc_cost import peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8000])
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--lookahead", type=int, default=24)
    parser.add_argument("--steps", type=int, default=24, help="tokens decoded")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    loaded = load_model(args.model)
    model, view = loaded.model, attention_view(loaded.model)
    config = SpecKVConfig(max_capacity_prompt=args.capacity)
    adaptive = replace(config, head_budgets="adaptive")
    times_table, memory_table = [], []
    for tokens in args.tokens:
        torch.manual_seed(0)
        ids = torch.randint(1000, 40_000, (1, tokens))
        lookahead = torch.randint(1000, 40_000, (args.lookahead,))
        whole = torch.cat([ids, lookahead[None]], dim=1)

        def plain_prefill(whole: Tensor = whole) -> DynamicCache:
            cache = DynamicCache(config=model.config)
            model(whole, past_key_values=cache, logits_to_keep=1)
            return cache

        def speckv_prefill(
            ids: Tensor = ids, lookahead: Tensor = lookahead, config: SpecKVConfig = config
        ) -> DynamicCache:
            return prefill(view, ids, torch.ones_like(ids), [lookahead], config)[0]

        short = ids[:, : args.capacity + 1]
        times: dict[str, list[float]] = {name: [] for name in ("plain", "ours", "full", "kept", "equal", "shared")}
        cache_size: dict[str, int] = {}
        for _ in range(args.repeats + 1):  # the first round warms up
            seconds, cache = _timed(plain_prefill)
            times["plain"].append(seconds)
            cache.crop(-args.lookahead - 1)
            cache_size["full"] = sum(_bytes(layer) for layer in cache.layers)
            times["full"].append(_decode(model, ids, cache, args.steps))
            seconds, cache = _timed(speckv_prefill)
            times["ours"].append(seconds)
            cache_size["kept"] = sum(_bytes(layer) for layer in cache.layers)
            times["kept"].append(_decode(model, ids, cache, args.steps))
            cache = plain_prefill(short[:, :-1])
            times["equal"].append(_decode(model, short, cache, args.steps))
            cache = speckv_prefill(config=adaptive)
            cache_size["shared"] = sum(_bytes(layer) for layer in cache.layers)
            times["shared"].append(_decode(decoding_model(model, cache), ids, cache, args.steps))
        del cache
        median = {name: statistics.median(values[1:]) for name, values in times.items()}
        ratio = {
            (a, b): statistics.median(x / y for x, y in zip(times[a][1:], times[b][1:], strict=True))
            for a, b in (("ours", "plain"), ("kept", "full"), ("kept", "equal"), ("shared", "kept"))
        }
        times_table.append(
            [
                f"{tokens:,}",
                f"{median['plain']:.2f} s",
                f"{median['ours']:.2f} s",
                f"{ratio['ours', 'plain']:.2f}",
                *(f"{1000 * median[name]:.1f} ms" for name in ("full", "equal", "kept", "shared")),
                f"{ratio['kept', 'full']:.2f}",
                f"{ratio['kept', 'equal']:.2f}",
                f"{ratio['shared', 'kept']:.2f}",
            ]
        )
        peaks = [peak_bytes(partial(_timed, run)) for run in (plain_prefill, speckv_prefill)]
        memory = [*peaks, cache_size["full"], cache_size["kept"], cache_size["shared"]]
        memory_table.append([f"{tokens:,}", *(f"{size / 2**20:.1f}" for size in memory)])
    print(machine())
    print(f"{loaded.name} ({loaded.dtype}), {args.capacity} KV pairs per head, lookahead of {args.lookahead} tokens\n")
    header = [
        "prompt",
        "plain prefill",
        "SpecKV's",
        "ratio",
        "token, full cache",
        "plain cache as small",
        "SpecKV",
        "adaptive",
    ]
    print(table([*header, "to full", "to as small", "adaptive to SpecKV"], times_table))
    print("\nMiB:\n")
    print(
        table(["prompt", "peak of a plain prefill", "of SpecKV's", "KV, full", "KV, SpecKV", "adaptive"], memory_table)
    )


@torch.inference_mode()
def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def _decode(model: Any, ids: Tensor, cache: DynamicCache, steps: int) -> float:
    """Seconds per token of `model.generate`, from a cache of all tokens but the last."""
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False}
    started = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)
    return (time.perf_counter() - started) / steps


def _bytes(layer: Any) -> int:
    return sum(t.numel() * t.element_size() for t in vars(layer).values() if isinstance(t, Tensor))


if __name__ == "__main__":
    main()
