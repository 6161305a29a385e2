"""Sparse prefill: time saved, and change of the next-token distributions.

    python -m benchmarks.sparse_prefill --tokens 2048 4096 8000 --sizes 512+512 1024+1024 2048+2048

The prompts are the first tokens of the concatenated files in demo/docs; the lookahead is the text's own next tokens.
SpecKV's prefill runs dense and, with each band + columns, sparse, in turns; the table shows medians of times and of
ratios of neighbouring runs. Then the text continues from each cache: KL divergence of the next-token distributions from
those after the dense prefill and from those of the full cache, and how often the likeliest token is the same.
`--clock cpu` counts the process's own seconds, which are fairer with one thread on a busy machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftapprox_integrations import SpecKVConfig, load_model
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill

from .common import machine, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--docs", type=Path, default=Path("demo/docs"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8000])
    parser.add_argument("--sizes", nargs="+", default=["512+512", "1024+1024", "2048+2048"])
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--lookahead", type=int, default=64, help="lookahead tokens, also compared")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    loaded = load_model(args.model)
    text = "\n\n".join(
        path.read_text(encoding="utf-8") for path in sorted(args.docs.iterdir()) if path.suffix != ".pdf"
    )
    ids = torch.tensor([loaded.require_tokenizer()(text)["input_ids"]])
    if ids.shape[1] < max(args.tokens) + args.lookahead:
        parser.error(f"{args.docs} has {ids.shape[1]} tokens")
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    configs = {"dense": SpecKVConfig(max_capacity_prompt=args.capacity)}
    for name in args.sizes:
        band, columns = map(int, name.split("+"))
        configs[name] = SpecKVConfig(
            max_capacity_prompt=args.capacity, prefill="sparse", prefill_window_size=band, prefill_vertical_size=columns
        )
    print(f"{machine()}; {args.clock} clock")
    print(f"{loaded.name} ({loaded.dtype}), {args.capacity} KV pairs per head, lookahead of {args.lookahead} tokens\n")
    rows = []
    for tokens in args.tokens:
        rows += _measure(loaded.model, ids[:, : tokens + args.lookahead], tokens, configs, args.repeats, clock)
    header = ["prompt", "band + columns", "prefill", "speed-up", "KL from dense", "same next token"]
    print(table([*header, "KL from full cache", "same next token"], rows))


@torch.inference_mode()
def _measure(
    model: PreTrainedModel,
    ids: Tensor,
    tokens: int,
    configs: dict[str, SpecKVConfig],
    repeats: int,
    clock: Callable[[], float],
) -> list[list[str]]:
    view, prompt, lookahead = attention_view(model), ids[:, :tokens], ids[0, tokens:]
    times: dict[str, list[float]] = {name: [] for name in configs}
    logits: dict[str, Tensor] = {}
    prefill(view, prompt[:, :1024], torch.ones_like(prompt[:, :1024]), [lookahead], configs["dense"])  # warms up
    for _ in range(repeats):
        for name, config in configs.items():
            started = clock()
            cache, _ = prefill(view, prompt, torch.ones_like(prompt), [lookahead], config)
            times[name].append(clock() - started)
            logits[name] = _continuation_logits(model, ids, tokens, cache)
    full = model(ids[:, :-1], logits_to_keep=len(lookahead)).logits[0]
    rows = []
    for name, config in configs.items():
        dense = tokens < config.prefill_window_size + config.prefill_vertical_size and name != "dense"
        ratio = statistics.median(a / b for a, b in zip(times["dense"], times[name], strict=True))
        rows.append(
            [
                f"{tokens:,}",
                f"{name} (stays dense)" if dense else name,
                f"{statistics.median(times[name]):.2f} s",
                f"{ratio:.2f}",
                *_compare(logits["dense"], logits[name]),
                *_compare(full, logits[name]),
            ]
        )
    return rows


def _continuation_logits(model: PreTrainedModel, ids: Tensor, tokens: int, cache: Any) -> Tensor:
    """Logits of the text after the prompt, from a cache of the prompt without its last token."""
    piece = slice(tokens - 1, ids.shape[1] - 1)
    positions = torch.arange(ids.shape[1])[None, piece]
    mask = torch.ones_like(ids[:, :-1])
    out: Tensor = model(ids[:, piece], attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    return out[0]


def _compare(reference: Tensor, logits: Tensor) -> tuple[str, str]:
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    same = (p.argmax(-1) == q.argmax(-1)).sum()
    return f"{float(divergence):.3f}", f"{int(same)}/{len(p)}"


if __name__ == "__main__":
    main()
