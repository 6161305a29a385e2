"""Attention of one new token per row to the entries of its slot."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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
    grouped = query.reshape(rows, key.shape[1], -1, dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=step.bias, scale=scaling)
    return out.reshape(rows, 1, heads, -1)
