"""Triton kernel of `vertical_slash`: one program per query head and block of queries."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .triton_common import LOG2_E, block_size, dot_type, padded, softmax_step


def attend(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    """Launch the kernel; see `vertical_slash`."""
    (heads, tokens, head_dim), (kv_heads, _, value_dim) = query.shape, value.shape
    head_pad, value_pad = padded(head_dim), padded(value_dim)
    block = min(64, block_size(query, head_pad, value_pad))
    out = query.new_empty(heads, tokens, value_dim)
    attend_block[(triton.cdiv(tokens, block), heads)](
        query,
        key,
        value,
        columns,
        out,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *columns.stride(),
        tokens,
        columns.shape[1],
        window,
        heads // kv_heads,
        scaling * LOG2_E,
        head_dim,
        value_dim,
        head_pad=head_pad,
        value_pad=value_pad,
        block=block,
        dot_type=dot_type(query),
        enable_fp_fusion=True,
    )
    return out


@triton.jit
def attend_keys(
    q: tl.tensor,
    index: tl.tensor,
    seen: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_token: tl.tensor,
    key_channel: tl.tensor,
    value_token: tl.tensor,
    value_channel: tl.tensor,
    scaling: tl.tensor,
    head_dim: tl.tensor,
    value_dim: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    weighted: tl.tensor,
    head_pad: tl.constexpr,
    value_pad: tl.constexpr,
    dot_type: tl.constexpr,
) -> tl.tensor:
    """Add the keys at `index` [block] to a running softmax; `seen` [queries, block] says which query counts which."""
    channel = tl.arange(0, head_pad)[:, None]
    value_number = tl.arange(0, value_pad)[None, :]
    at = index.to(tl.int64)
    valid = index >= 0
    k = tl.load(key + at[None, :] * key_token + channel * key_channel, valid[None, :] & (channel < head_dim), other=0.0)
    logits = tl.dot(q, k.to(dot_type), input_precision="ieee") * scaling
    logits = tl.where(seen, logits, float("-inf"))
    v = tl.load(
        value + at[:, None] * value_token + value_number * value_channel,
        valid[:, None] & (value_number < value_dim),
        other=0.0,
    )
    return softmax_step(logits, v, highest, total, weighted, dot_type)


@triton.jit
def attend_block(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    columns: tl.tensor,
    out: tl.tensor,
    query_head: tl.tensor,
    query_token: tl.tensor,
    query_channel: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    key_channel: tl.tensor,
    value_head: tl.tensor,
    value_token: tl.tensor,
    value_channel: tl.tensor,
    column_head: tl.tensor,
    column_number: tl.tensor,
    tokens: tl.tensor,
    column_count: tl.tensor,
    window: tl.tensor,
    group: tl.tensor,
    scaling: tl.tensor,
    head_dim: tl.tensor,
    value_dim: tl.tensor,
    head_pad: tl.constexpr,
    value_pad: tl.constexpr,
    block: tl.constexpr,
    dot_type: tl.constexpr,
) -> None:
    """Attend from a block of queries to their columns, then to their bands; program (queries, head)."""
    head = tl.program_id(1).to(tl.int64)
    kv = head // group
    begin = tl.program_id(0) * block
    end = tl.minimum(begin + block, tokens)
    key += kv * key_head
    value += kv * value_head
    columns += kv * column_head
    position = begin + tl.arange(0, block)
    channel = tl.arange(0, head_pad)[None, :]
    inside = (position < tokens)[:, None]
    at = position.to(tl.int64)[:, None]
    q = tl.load(
        query + head * query_head + at * query_token + channel * query_channel,
        inside & (channel < head_dim),
        other=0.0,
    ).to(dot_type)
    highest = tl.full([block], float("-inf"), tl.float32)
    total = tl.zeros([block], tl.float32)
    weighted = tl.zeros([block, value_pad], tl.float32)
    for first in range(0, column_count, block):
        # Columns ascend: once one lies in the last query's band, so do the rest.
        if tl.load(columns + first * column_number) <= end - 1 - window:
            number = first + tl.arange(0, block)
            index = tl.load(columns + number * column_number, number < column_count, other=-1).to(tl.int32)
            seen = (index >= 0)[None, :] & (index[None, :] <= position[:, None] - window)
            highest, total, weighted = attend_keys(
                q,
                index,
                seen,
                key,
                value,
                key_token,
                key_channel,
                value_token,
                value_channel,
                scaling,
                head_dim,
                value_dim,
                highest,
                total,
                weighted,
                head_pad,
                value_pad,
                dot_type,
            )
    for first in range(tl.maximum(begin - window + 1, 0), end, block):
        number = first + tl.arange(0, block)
        index = tl.where(number < end, number, -1)
        seen = (number[None, :] <= position[:, None]) & (number[None, :] > position[:, None] - window)
        highest, total, weighted = attend_keys(
            q,
            index,
            seen & (index >= 0)[None, :],
            key,
            value,
            key_token,
            key_channel,
            value_token,
            value_channel,
            scaling,
            head_dim,
            value_dim,
            highest,
            total,
            weighted,
            head_pad,
            value_pad,
            dot_type,
        )
    value_number = tl.arange(0, value_pad)[None, :]
    result = weighted / tl.where(total == 0.0, 1.0, total)[:, None]  # 0 beyond the last token only
    target = out + (head * tokens + at) * value_dim + value_number
    tl.store(target, result.to(out.dtype.element_ty), inside & (value_number < value_dim))
