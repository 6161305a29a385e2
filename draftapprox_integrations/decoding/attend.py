"""Attention of one new token per row to the entries of its slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.decode_attention import decode_attention
from ..kernels.dispatch import use_triton
from ..kernels.pairs import pairs_of
from .spans import SpanStep


def attend_slots(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: SpanStep | None,
    scaling: float,
    buffers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute the attention of a step.

    The heads of a group are the rows of one call per KV head, so that keys and values are not repeated.

    Args:
        query: [rows, heads, 1, head_dim].
        key, value: [rows, kv_heads, entries, head_dim].
        step: Its bias says which entries count.
        scaling: Factor of query @ key.
        buffers: The whole buffers that `key` and `value` are views of, for kernels that take lengths; None where they
            are not.

    Returns:
        [rows, 1, heads, head_dim of value].
    """
    assert step is not None
    rows, heads, _, dim = query.shape
    if buffers is not None and step.lengths is not None and step.lowers is not None and use_triton(query):
        pairs = pairs_of(buffers[0][:rows], buffers[1][:rows], step.lengths, step.lowers)
        return decode_attention(query[:, :, 0], [pairs], scaling)[:, None]
    grouped = query.reshape(rows, key.shape[1], -1, dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=step.bias, scale=scaling)
    return out.reshape(rows, 1, heads, -1)


def attend_parts(query: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor | None]], scaling: float) -> Tensor:
    """Compute attention to pairs that lie in several places, without putting them together.

    Args:
        query: [rows, heads, 1, head_dim].
        parts: Keys and values [rows, kv_heads, entries, head_dim], and a bias [rows, 1, 1, entries] or None.
        scaling: Factor of query @ key.

    Returns:
        [rows, 1, heads, head_dim of value].
    """
    rows, heads, _, dim = query.shape
    grouped = query.reshape(rows, parts[0][0].shape[1], -1, dim)
    logits = []
    for keys, _, bias in parts:
        part = torch.matmul(grouped, keys.transpose(-1, -2)).float() * scaling
        logits.append(part if bias is None else part + bias)
    weights = torch.cat(logits, dim=-1).softmax(-1).to(query.dtype).split([part.shape[-1] for part in logits], dim=-1)
    out = sum(torch.matmul(weight, values) for weight, (_, values, _) in zip(weights, parts, strict=True))
    assert isinstance(out, Tensor)
    return out.reshape(rows, 1, heads, -1)
