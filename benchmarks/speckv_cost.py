"""What SpecKV costs and saves: prefill against a plain one, decoding against the full cache, KV bytes, peak memory.

    python -m benchmarks.speckv_cost --tokens 1024 4096 8000

Random prompts, the embedded model, a guess of 24 tokens that is given (the draft's own time is not part of this).
Interleaved in one process, medians. Decoding is timed by feeding single tokens after each kind of prefill.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from draftapprox_integrations import SpecKVConfig, load_model
from draftapprox_integrations.attention import attention_view
from draftapprox_integrations.speckv.eviction import prefill

from .common import machine, table


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
    rows = []
    for tokens in args.tokens:
        torch.manual_seed(0)
        ids = torch.randint(1000, 40_000, (1, tokens))
        guess = torch.randint(1000, 40_000, (args.lookahead,))
        whole = torch.cat([ids, guess[None]], dim=1)

        def plain(whole: Tensor = whole) -> DynamicCache:
            cache = DynamicCache(config=model.config)
            model(whole, past_key_values=cache, logits_to_keep=1)
            return cache

        def ours(ids: Tensor = ids, guess: Tensor = guess) -> DynamicCache:
            return prefill(view, ids, torch.ones_like(ids), [guess], config)[0]

        times: dict[str, list[float]] = {"plain": [], "ours": [], "decode plain": [], "decode ours": []}
        bytes_held: dict[str, int] = {}
        for _ in range(args.repeats + 1):  # the first round warms up
            for name, run in (("plain", plain), ("ours", ours)):
                seconds, cache = _timed(run)
                bytes_held[name] = sum(_bytes(layer) for layer in cache.layers)
                times[name].append(seconds)
                start = cache.get_seq_length()
                times[f"decode {name}"].append(_decode(model, cache, start, args.steps))
        median = {name: statistics.median(values[1:]) for name, values in times.items()}
        rows.append(
            [
                f"{tokens:,}",
                f"{median['plain']:.2f} s",
                f"{median['ours']:.2f} s",
                f"{median['ours'] / median['plain']:.2f}",
                f"{1000 * median['decode plain']:.1f} ms",
                f"{1000 * median['decode ours']:.1f} ms",
                f"{median['decode ours'] / median['decode plain']:.2f}",
                f"{bytes_held['plain'] / 2**20:.1f}",
                f"{bytes_held['ours'] / 2**20:.1f}",
            ]
        )
    print(machine())
    print(f"{loaded.name} ({loaded.dtype}), {args.capacity} KV pairs per head, guess of {args.lookahead} tokens\n")
    header = ["prompt", "plain prefill", "SpecKV's", "ratio", "decode/token, full", "SpecKV", "ratio"]
    print(table([*header, "KV MiB, full", "SpecKV"], rows))


@torch.inference_mode()
def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


@torch.inference_mode()
def _decode(model: Any, cache: DynamicCache, start: int, steps: int) -> float:
    """Seconds per token."""
    begun = time.perf_counter()
    for step in range(steps):
        model(torch.tensor([[5000]]), position_ids=torch.tensor([[start + step]]), past_key_values=cache)
    return (time.perf_counter() - begun) / steps


def _bytes(layer: Any) -> int:
    return sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))


if __name__ == "__main__":
    main()
