"""KV pairs of a running batch, as the decode kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """KV pairs of a running batch; those of a KV head of a row are consecutive entries.

    Attributes:
        keys: [entries, head_dim], in the query's dtype.
        values: [entries, value_dim], in the query's dtype.
        starts: int64 [batch, kv_heads], the first entry.
        lengths: int64 [batch, kv_heads], the number of entries; may be 0.
        capacity: Upper bound of `lengths`. It fixes the launch grid, so it comes from the host.
    """

    keys: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    capacity: int

    @property
    def value_dim(self) -> int:
        """Size of a value."""
        return self.values.shape[-1]


class Codes(Protocol):
    """Numbers in 8 or 4 bits; `speckv.cache.quantized.Packed` is such."""

    @property
    def codes(self) -> Tensor:
        """uint8 [..., groups, group] with 8 bits; with 4 bits two per byte, the lower half first, [..., group / 2]."""

    @property
    def step(self) -> Tensor:
        """float32 [..., groups, 1]."""

    @property
    def low(self) -> Tensor:
        """Minimum, [..., groups, 1], in the numbers' dtype."""

    @property
    def count(self) -> int:
        """Numbers along the last dimension, without the padding of the last group."""

    @property
    def bits(self) -> int:
        """8 or 4."""


@dataclass(frozen=True)
class PackedPairs:
    """Quantized KV pairs of a running batch, the same number of slots for each KV head of each row.

    Attributes:
        keys: Codes [batch, kv_heads, head_dim, ...], grouped along the tokens of a channel.
        values: Codes [batch, kv_heads, tokens, ...], grouped along the channels of a token; as many bits as the keys.
        lengths: int64 [batch, kv_heads], the number of pairs in use, the first ones; may be 0.
    """

    keys: Codes
    values: Codes
    lengths: Tensor

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.keys.count

    @property
    def value_dim(self) -> int:
        """Size of a value."""
        return self.values.count


def pairs_of(keys: Tensor, values: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Pairs:
    """Describe a dense buffer as `Pairs`, without a copy where the buffer is contiguous or a slice of such a one.

    Args:
        keys: [batch, kv_heads, slots, head_dim].
        values: [batch, kv_heads, slots, value_dim].
        lengths: int64 [batch] or [batch, kv_heads], the number of slots in use.
        starts: int64 [batch] or [batch, kv_heads], the first slot in use; None for 0.
    """
    batch, heads, slots = keys.shape[:3]
    if _row_stride(keys) != _row_stride(values) or _row_stride(keys) is None:
        keys, values = keys.contiguous(), values.contiguous()
    stride = _row_stride(keys) or (heads * slots, slots)
    first = _per_head(starts, heads) if starts is not None else torch.zeros_like(_per_head(lengths, heads))
    rows = torch.arange(batch, device=keys.device)[:, None] * stride[0]
    return Pairs(
        _entries(keys),
        _entries(values),
        rows + torch.arange(heads, device=keys.device) * stride[1] + first,
        _per_head(lengths, heads),
        slots,
    )


def _per_head(numbers: Tensor, heads: int) -> Tensor:
    return numbers if numbers.dim() == 2 else numbers[:, None].expand(-1, heads)


def _row_stride(buffer: Tensor) -> tuple[int, int] | None:
    """Entries from a row of the batch to the next, and from a head to the next; None where slots do not divide them."""
    row, head, slot, number = buffer.stride()
    if number != 1 or slot == 0 or row % slot or head % slot:
        return None
    return row // slot, head // slot


def _entries(buffer: Tensor) -> Tensor:
    """All entries from the buffer's first slot to its last, [entries, dim], those of other buffers between included."""
    (batch, heads, slots, dim), (row, head, slot, _) = buffer.shape, buffer.stride()
    count = ((batch - 1) * row + (heads - 1) * head) // slot + slots if buffer.numel() else 0
    return buffer.as_strided((count, dim), (slot, 1))
