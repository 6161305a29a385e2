"""Triton kernels of `tail_scores`. The queries of a KV head's group are one list of members, head by head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_common import LOG2_E, block_size, dot_type, padded

PROGRAMS = 1024  # wanted: several for each multiprocessor of a large GPU


def reduce_tail(
    query: Tensor,
    key: Tensor,
    first_keys: Tensor,
    query_weights: Tensor,
    columns: int,
    scaling: float,
    reduction: str,
) -> Tensor:
    """Launch the kernels; see `tail_scores`."""
    (batch, heads, new, head_dim), (kv_heads, tokens) = query.shape, key.shape[1:3]
    rows, group = query_weights.shape[1], heads // kv_heads
    out = query.new_empty(batch, kv_heads, columns, dtype=torch.float32)
    if not columns:
        return out
    members = group * rows
    head_pad = padded(head_dim)
    block = block_size(query, head_pad, head_pad)
    member_block = min(64, block, padded(members))
    member_blocks = triton.cdiv(members, member_block)
    # A few queries times a long prompt: without splits of the keys, most of a GPU would be idle.
    splits = min(32, triton.cdiv(PROGRAMS, batch * kv_heads * member_blocks), triton.cdiv(tokens, block))
    split_size = triton.cdiv(triton.cdiv(tokens, splits), block) * block
    lses = query.new_empty(batch * kv_heads, members, splits, dtype=torch.float32)
    tail = query[:, :, new - rows :]
    first_keys, weights = first_keys.contiguous(), query_weights.to(torch.float32)
    shared = {
        "scaling": scaling * LOG2_E,
        "kv_heads": kv_heads,
        "rows": rows,
        "members": members,
        "tokens": tokens,
        "splits": splits,
        "head_dim": head_dim,
        "head_pad": head_pad,
        "member_block": member_block,
        "block": block,
        "dot_type": dot_type(query),
        "enable_fp_fusion": True,
    }
    strides = (*tail.stride(), *key.stride())
    find_lse[(member_blocks, batch * kv_heads, splits)](
        tail, key, first_keys, lses, *strides, split_size=split_size, **shared
    )
    reduce_keys[(triton.cdiv(columns, block), batch * kv_heads)](
        tail,
        key,
        first_keys,
        lses,
        weights,
        out,
        *strides,
        *weights.stride(),
        columns=columns,
        splits_pad=padded(splits),
        maximum=reduction == "max",
        **shared,
    )
    return out


@triton.jit
def load_members(
    query: tl.tensor,
    member: tl.tensor,
    batch: tl.tensor,
    kv: tl.tensor,
    query_batch: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    query_channel: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    head_dim: tl.tensor,
    head_pad: tl.constexpr,
) -> tl.tensor:
    """The queries of these members, [member_block, head_pad]; 0 beyond members and head_dim."""
    channel = tl.arange(0, head_pad)[None, :]
    head = kv * (members // rows) + member // rows
    at = batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head + (member % rows).to(tl.int64) * query_row
    inside = (member < members)[:, None] & (channel < head_dim)
    return tl.load(query + at[:, None] + channel * query_channel, inside, other=0.0)


@triton.jit
def load_keys(
    key: tl.tensor,
    column: tl.tensor,
    key_token: tl.tensor,
    key_channel: tl.tensor,
    tokens: tl.tensor,
    head_dim: tl.tensor,
    head_pad: tl.constexpr,
) -> tl.tensor:
    """The keys of these tokens, transposed, [head_pad, block]; 0 beyond tokens and head_dim."""
    channel = tl.arange(0, head_pad)[:, None]
    inside = (column < tokens)[None, :] & (channel < head_dim)
    return tl.load(key + column.to(tl.int64)[None, :] * key_token + channel * key_channel, inside, other=0.0)


@triton.jit
def find_lse(
    query: tl.tensor,
    key: tl.tensor,
    first_keys: tl.tensor,
    lses: tl.tensor,
    query_batch: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    query_channel: tl.tensor,
    key_batch: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    key_channel: tl.tensor,
    scaling: tl.tensor,
    kv_heads: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    tokens: tl.tensor,
    splits: tl.tensor,
    split_size: tl.tensor,
    head_dim: tl.tensor,
    head_pad: tl.constexpr,
    member_block: tl.constexpr,
    block: tl.constexpr,
    dot_type: tl.constexpr,
) -> None:
    """Log-sum-exp, base 2, of some members over a split of the keys; program (members, row and KV head, split)."""
    pair = tl.program_id(1)
    batch = pair // kv_heads
    kv = pair % kv_heads
    key += batch.to(tl.int64) * key_batch + kv.to(tl.int64) * key_head
    member = tl.program_id(0) * member_block + tl.arange(0, member_block)
    q = load_members(
        query, member, batch, kv, query_batch, query_head, query_row, query_channel, rows, members, head_dim, head_pad
    ).to(dot_type)
    position = tokens - rows + member % rows
    first_key = tl.load(first_keys + batch).to(tl.int32)
    begin = tl.program_id(2) * split_size
    highest = tl.full([member_block], float("-inf"), tl.float32)
    total = tl.zeros([member_block], tl.float32)
    for start in range(tl.maximum(begin, first_key), tl.minimum(begin + split_size, tokens), block):
        column = start + tl.arange(0, block)
        k = load_keys(key, column, key_token, key_channel, tokens, head_dim, head_pad)
        logits = tl.dot(q, k.to(dot_type), input_precision="ieee") * scaling
        seen = (column[None, :] <= position[:, None]) & (column < begin + split_size)[None, :]
        logits = tl.where(seen, logits, float("-inf"))
        new = tl.maximum(highest, tl.max(logits, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # -inf minus -inf is NaN
        total = total * tl.exp2(highest - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
        highest = new
    at = (pair.to(tl.int64) * members + member) * splits + tl.program_id(2)
    tl.store(lses + at, highest + tl.log2(total), member < members)


@triton.jit
def reduce_keys(
    query: tl.tensor,
    key: tl.tensor,
    first_keys: tl.tensor,
    lses: tl.tensor,
    query_weights: tl.tensor,
    out: tl.tensor,
    query_batch: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    query_channel: tl.tensor,
    key_batch: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    key_channel: tl.tensor,
    weight_batch: tl.tensor,
    weight_row: tl.tensor,
    scaling: tl.tensor,
    kv_heads: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    tokens: tl.tensor,
    splits: tl.tensor,
    columns: tl.tensor,
    head_dim: tl.tensor,
    splits_pad: tl.constexpr,
    maximum: tl.constexpr,
    head_pad: tl.constexpr,
    member_block: tl.constexpr,
    block: tl.constexpr,
    dot_type: tl.constexpr,
) -> None:
    """Reduce the weights of a block of keys over all members; program (keys, row and KV head)."""
    pair = tl.program_id(1)
    batch = pair // kv_heads
    kv = pair % kv_heads
    key += batch.to(tl.int64) * key_batch + kv.to(tl.int64) * key_head
    column = tl.program_id(0) * block + tl.arange(0, block)
    first_key = tl.load(first_keys + batch).to(tl.int32)
    k = load_keys(key, column, key_token, key_channel, tokens, head_dim, head_pad).to(dot_type)
    every = tl.arange(0, splits_pad)
    scores = tl.zeros([block], tl.float32)
    broken = tl.zeros([block], tl.int32)
    for start in range(0, members, member_block):
        member = start + tl.arange(0, member_block)
        q = load_members(
            query,
            member,
            batch,
            kv,
            query_batch,
            query_head,
            query_row,
            query_channel,
            rows,
            members,
            head_dim,
            head_pad,
        ).to(dot_type)
        at = (pair.to(tl.int64) * members + member)[:, None] * splits + every[None, :]
        parts = tl.load(lses + at, (member < members)[:, None] & (every < splits)[None, :], other=float("-inf"))
        highest = tl.max(parts, axis=1)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        lse = shift + tl.log2(tl.sum(tl.exp2(parts - shift[:, None]), axis=1))
        at_weight = batch * weight_batch + (member % rows) * weight_row
        factor = tl.load(query_weights + at_weight, member < members, other=0.0)
        weights = tl.exp2(tl.dot(q, k, input_precision="ieee") * scaling - lse[:, None]) * factor[:, None]
        seen = (column[None, :] <= (tokens - rows + member % rows)[:, None]) & (column >= first_key)[None, :]
        weights = tl.where(seen & (factor != 0.0)[:, None], weights, 0.0)
        if maximum:
            scores = tl.maximum(scores, tl.max(weights, axis=0))
            broken = tl.maximum(broken, tl.max((weights != weights).to(tl.int32), axis=0))
        else:
            scores += tl.sum(weights, axis=0)
    scores = tl.where(broken > 0, float("nan"), scores)  # a maximum would hide a NaN
    tl.store(out + pair.to(tl.int64) * columns + column, scores, column < columns)
