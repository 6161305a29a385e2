"""Triton kernels of `decode_attention`: one program per split of a KV head's pairs, then one per query head merges."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_common import softmax_step


@triton.jit
def _load_query(
    query: tl.tensor,
    pair: tl.tensor,
    group: tl.tensor,
    head_dim: tl.tensor,
    group_pad: tl.constexpr,
    head_pad: tl.constexpr,
) -> tl.tensor:
    """The queries [group_pad, head_pad] of one KV head of one row; 0 beyond group and head_dim."""
    row = tl.arange(0, group_pad)[:, None]
    channel = tl.arange(0, head_pad)[None, :]
    return tl.load(query + (pair * group + row) * head_dim + channel, (row < group) & (channel < head_dim), other=0.0)


@triton.jit
def _store_split(
    sums: tl.tensor,
    lses: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    weighted: tl.tensor,
    pair: tl.tensor,
    split: tl.tensor,
    splits: tl.tensor,
    group: tl.tensor,
    value_dim: tl.tensor,
    group_pad: tl.constexpr,
    value_pad: tl.constexpr,
) -> tl.tensor:
    """Write a split's attention and its log-sum-exp."""
    row = tl.arange(0, group_pad)
    channel = tl.arange(0, value_pad)[None, :]
    slot = (pair * group + row).to(tl.int64) * splits + split
    tl.store(lses + slot, highest + tl.log2(total), row < group)
    inside = (row < group)[:, None] & (channel < value_dim)
    tl.store(sums + slot[:, None] * value_dim + channel, weighted / total[:, None], inside)


@triton.jit
def attend_dense(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    sums: tl.tensor,
    lses: tl.tensor,
    key_stride: tl.tensor,
    key_channel: tl.tensor,
    value_stride: tl.tensor,
    value_channel: tl.tensor,
    start_row: tl.tensor,
    start_head: tl.tensor,
    length_row: tl.tensor,
    length_head: tl.tensor,
    scaling: tl.tensor,
    kv_heads: tl.tensor,
    first_split: tl.tensor,
    splits: tl.tensor,
    split_size: tl.tensor,
    group: tl.tensor,
    head_dim: tl.tensor,
    value_dim: tl.tensor,
    group_pad: tl.constexpr,
    head_pad: tl.constexpr,
    value_pad: tl.constexpr,
    block: tl.constexpr,
    dot_type: tl.constexpr,
) -> None:
    """Attend to one split of `Pairs`; program (row and KV head, split)."""
    pair = tl.program_id(0)
    begin = tl.program_id(1) * split_size
    split = first_split + tl.program_id(1)
    length = tl.load(lengths + (pair // kv_heads) * length_row + (pair % kv_heads) * length_head).to(tl.int32)
    if begin >= length:
        row = tl.arange(0, group_pad)
        tl.store(lses + (pair * group + row).to(tl.int64) * splits + split, float("-inf"), row < group)
        return
    start = tl.load(starts + (pair // kv_heads) * start_row + (pair % kv_heads) * start_head).to(tl.int64)
    keys += start * key_stride
    values += start * value_stride
    q = _load_query(query, pair, group, head_dim, group_pad, head_pad).to(dot_type)
    channel = tl.arange(0, head_pad)
    value_number = tl.arange(0, value_pad)
    highest = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    weighted = tl.zeros([group_pad, value_pad], tl.float32)
    for first in range(begin, tl.minimum(begin + split_size, length), block):
        slot = first + tl.arange(0, block)
        at = slot.to(tl.int64)
        k = tl.load(
            keys + at[None, :] * key_stride + channel[:, None] * key_channel,
            (slot < length)[None, :] & (channel < head_dim)[:, None],
            other=0.0,
        )
        logits = tl.dot(q, k.to(dot_type), input_precision="ieee") * scaling
        logits = tl.where((slot < length)[None, :], logits, float("-inf"))
        v = tl.load(
            values + at[:, None] * value_stride + value_number[None, :] * value_channel,
            (slot < length)[:, None] & (value_number < value_dim)[None, :],
            other=0.0,
        )
        highest, total, weighted = softmax_step(logits, v, highest, total, weighted, dot_type)
    _store_split(sums, lses, highest, total, weighted, pair, split, splits, group, value_dim, group_pad, value_pad)


@triton.jit
def _dequantize(
    codes: tl.tensor,
    step: tl.tensor,
    low: tl.tensor,
    number: tl.tensor,
    group: tl.tensor,
    mask: tl.tensor,
    bits: tl.constexpr,
) -> tl.tensor:
    """Numbers at index `number` of a line of codes, whose groups have `group` numbers each."""
    if bits == 8:
        code = tl.load(codes + number, mask, other=0)
    else:
        code = (tl.load(codes + number // 2, mask, other=0) >> ((number & 1) * 4).to(tl.uint8)) & 15
    lowest = tl.load(low + number // group, mask, other=0.0)
    exact = code.to(tl.float32) * tl.load(step + number // group, mask, other=0.0) + lowest.to(tl.float32)
    return exact.to(lowest.dtype)


@triton.jit
def attend_packed(
    query: tl.tensor,
    key_codes: tl.tensor,
    key_steps: tl.tensor,
    key_lows: tl.tensor,
    value_codes: tl.tensor,
    value_steps: tl.tensor,
    value_lows: tl.tensor,
    lengths: tl.tensor,
    sums: tl.tensor,
    lses: tl.tensor,
    length_row: tl.tensor,
    length_head: tl.tensor,
    key_groups: tl.tensor,
    key_group: tl.tensor,
    value_groups: tl.tensor,
    value_group: tl.tensor,
    slots: tl.tensor,
    scaling: tl.tensor,
    kv_heads: tl.tensor,
    first_split: tl.tensor,
    splits: tl.tensor,
    split_size: tl.tensor,
    group: tl.tensor,
    head_dim: tl.tensor,
    value_dim: tl.tensor,
    bits: tl.constexpr,
    group_pad: tl.constexpr,
    head_pad: tl.constexpr,
    value_pad: tl.constexpr,
    block: tl.constexpr,
    dot_type: tl.constexpr,
) -> None:
    """Attend to one split of `PackedPairs`; program (row and KV head, split)."""
    pair = tl.program_id(0)
    begin = tl.program_id(1) * split_size
    split = first_split + tl.program_id(1)
    length = tl.load(lengths + (pair // kv_heads) * length_row + (pair % kv_heads) * length_head).to(tl.int32)
    if begin >= length:
        row = tl.arange(0, group_pad)
        tl.store(lses + (pair * group + row).to(tl.int64) * splits + split, float("-inf"), row < group)
        return
    q = _load_query(query, pair, group, head_dim, group_pad, head_pad).to(dot_type)
    channel = tl.arange(0, head_pad)[:, None]
    value_number = tl.arange(0, value_pad)[None, :]
    key_line = pair.to(tl.int64) * head_dim + channel  # a line holds one channel's groups of tokens
    key_bytes = key_groups * key_group * bits // 8
    value_bytes = value_groups * value_group * bits // 8
    highest = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    weighted = tl.zeros([group_pad, value_pad], tl.float32)
    for first in range(begin, tl.minimum(begin + split_size, length), block):
        slot = first + tl.arange(0, block)
        inside = slot < length
        k = _dequantize(
            key_codes + key_line * key_bytes,
            key_steps + key_line * key_groups,
            key_lows + key_line * key_groups,
            slot[None, :],
            key_group,
            inside[None, :] & (channel < head_dim),
            bits,
        )
        logits = tl.dot(q, k.to(dot_type), input_precision="ieee") * scaling
        logits = tl.where(inside[None, :], logits, float("-inf"))
        value_line = pair.to(tl.int64) * slots + slot[:, None]  # a line holds one token's groups of channels
        v = _dequantize(
            value_codes + value_line * value_bytes,
            value_steps + value_line * value_groups,
            value_lows + value_line * value_groups,
            value_number,
            value_group,
            inside[:, None] & (value_number < value_dim),
            bits,
        )
        highest, total, weighted = softmax_step(logits, v, highest, total, weighted, dot_type)
    _store_split(sums, lses, highest, total, weighted, pair, split, splits, group, value_dim, group_pad, value_pad)


@triton.jit
def merge(
    sums: tl.tensor,
    lses: tl.tensor,
    out: tl.tensor,
    splits: tl.tensor,
    value_dim: tl.tensor,
    splits_pad: tl.constexpr,
    value_pad: tl.constexpr,
    step: tl.constexpr,
) -> None:
    """Merge the splits of one query head of one row; zeros where no split has pairs."""
    head = tl.program_id(0).to(tl.int64)
    sums += head * splits * value_dim
    lses += head * splits
    every = tl.arange(0, splits_pad)
    highest = tl.max(tl.load(lses + every, every < splits, other=float("-inf")), axis=0)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    channel = tl.arange(0, value_pad)
    total = tl.zeros([step], tl.float32)
    weighted = tl.zeros([value_pad], tl.float32)
    for first in range(0, splits, step):
        split = first + tl.arange(0, step)
        lse = tl.load(lses + split, split < splits, other=float("-inf"))
        weight = tl.exp2(lse - shift)
        # An empty split wrote no sum, so what lies there may be NaN.
        read = (lse != float("-inf"))[:, None] & (channel < value_dim)[None, :]
        part = tl.load(sums + split[:, None] * value_dim + channel[None, :], read, other=0.0)
        total += weight
        weighted += tl.sum(part * weight[:, None], axis=0)
    summed = tl.sum(total, axis=0)
    merged = weighted / tl.where(summed == 0.0, 1.0, summed)
    tl.store(out + head * value_dim + channel, merged.to(out.dtype.element_ty), channel < value_dim)
