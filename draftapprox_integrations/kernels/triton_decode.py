"""Launches of the Triton kernels of `decode_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .pairs import PackedPairs, Pairs
from .triton_common import LOG2_E, block_size, dot_type, padded
from .triton_decode_kernels import attend_dense, attend_packed, merge

PROGRAMS = 1024  # wanted at most per part: several for each multiprocessor of a large GPU
MERGED = 16  # splits per step of the merging program


def attend(query: Tensor, parts: Sequence[Pairs | PackedPairs], scaling: float) -> Tensor:
    """Launch the kernels; see `decode_attention`."""
    (batch, heads, head_dim), kv_heads = query.shape, parts[0].lengths.shape[1]
    query = query.contiguous()
    value_dim = parts[0].value_dim
    head_pad, value_pad = padded(head_dim), padded(value_dim)
    block = block_size(query, head_pad, value_pad)
    sizes = [_split_size(part.capacity, batch * kv_heads, block) for part in parts]
    counts = [triton.cdiv(part.capacity, size) for part, size in zip(parts, sizes, strict=True)]
    total = sum(counts)
    sums = query.new_empty(batch, heads, total, value_dim, dtype=torch.float32)
    lses = query.new_empty(batch, heads, total, dtype=torch.float32)
    first = 0
    for part, size, count in zip(parts, sizes, counts, strict=True):
        if count:
            grid = (batch * kv_heads, count)
            shared = {
                "scaling": scaling * LOG2_E,
                "kv_heads": kv_heads,
                "first_split": first,
                "splits": total,
                "split_size": size,
                "group": heads // kv_heads,
                "head_dim": head_dim,
                "value_dim": value_dim,
                "group_pad": padded(heads // kv_heads),
                "head_pad": head_pad,
                "value_pad": value_pad,
                "block": block,
                "dot_type": dot_type(query),
            }
            if isinstance(part, Pairs):
                _launch_dense(grid, query, part, sums, lses, shared)
            else:
                _launch_packed(grid, query, part, sums, lses, shared)
        first += count
    out = query.new_empty(batch, heads, value_dim)
    merge[(batch * heads,)](
        sums,
        lses,
        out,
        total,
        value_dim,
        splits_pad=max(MERGED, padded(total)),
        value_pad=value_pad,
        step=MERGED,
        enable_fp_fusion=True,
    )
    return out


def _split_size(capacity: int, heads: int, block: int) -> int:
    """Pairs per program: enough programs to fill the GPU, but no split under 128 pairs."""
    wanted = triton.cdiv(PROGRAMS, heads)
    return int(max(triton.cdiv(128, block), triton.cdiv(capacity, wanted * block))) * block


def _launch_dense(
    grid: tuple[int, int], query: Tensor, part: Pairs, sums: Tensor, lses: Tensor, shared: dict[str, Any]
) -> None:
    attend_dense[grid](
        query,
        part.keys,
        part.values,
        part.starts,
        part.lengths,
        sums,
        lses,
        *part.keys.stride(),
        *part.values.stride(),
        *part.starts.stride(),
        *part.lengths.stride(),
        enable_fp_fusion=True,
        **shared,
    )


def _launch_packed(
    grid: tuple[int, int], query: Tensor, part: PackedPairs, sums: Tensor, lses: Tensor, shared: dict[str, Any]
) -> None:
    keys, values = part.keys, part.values
    attend_packed[grid](
        query,
        keys.codes.contiguous(),
        keys.step.contiguous(),
        keys.low.contiguous(),
        values.codes.contiguous(),
        values.step.contiguous(),
        values.low.contiguous(),
        part.lengths,
        sums,
        lses,
        *part.lengths.stride(),
        keys.codes.shape[-2],
        keys.codes.shape[-1] * 8 // keys.bits,
        values.codes.shape[-2],
        values.codes.shape[-1] * 8 // values.bits,
        part.capacity,
        bits=keys.bits,
        num_stages=1,  # more would keep the step and minimum of each number in shared memory
        enable_fp_fusion=False,  # code * step + low is rounded twice, as in PyTorch
        **shared,
    )
