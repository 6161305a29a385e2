"""Attention of one sequence to a band and to columns before it: the sparse prefill's pattern (paper section 4.1).

FlexAttention's block mask would be no substitute: it skips blocks of 128 keys that nothing attends to, and computes the
others whole. Selected columns lie scattered, so nearly every block of a long prompt has one, and nearly nothing is
skipped; and it needs torch.compile, once per shape. It would serve if columns were selected in whole blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import dispatch

# Queries per attention call. Larger blocks need fewer calls, but each query is computed against all bands of its block.
BLOCK = 256


def vertical_slash(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    """Compute one sequence's attention to a band and, before it, to columns.

    Query i attends to key j where i - window < j <= i, and where j <= i - window is a column of its KV head.

    Args:
        query: [heads, tokens, head_dim], float32, float16 or bfloat16.
        key, value: [kv_heads, tokens, head_dim], not repeated for GQA.
        columns: LongTensor [kv_heads, any]: indices into the sequence, ascending.
        window: Width of the band, at least 1.
        scaling: Factor of query @ key.

    Returns:
        [heads, tokens, head_dim of value].
    """
    return dispatch(query, _triton_form, torch_form, query, key, value, columns, window, scaling)


def _triton_form(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    from .triton_vertical_slash import attend

    return attend(query, key, value, columns, window, scaling)


def torch_form(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    """Compute `vertical_slash` with SDPA, block by block of each KV head."""
    kv_heads, tokens, _ = key.shape
    grouped = query.unflatten(0, (kv_heads, -1))
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    parts = out.unflatten(0, (kv_heads, -1))
    starts = range(window, tokens, BLOCK)
    # Number of columns before each block's band, and before the band of its last query.
    edges = [(start - window + 1, min(start + BLOCK, tokens) - window) for start in starts]
    bounds = torch.tensor(edges, dtype=torch.long, device=columns.device).flatten()
    counts = torch.searchsorted(columns.contiguous(), bounds.expand(kv_heads, -1).contiguous())
    per_block = counts.view(kv_heads, len(edges), 2).tolist()
    band = _band_bias(window, min(BLOCK, tokens), query)
    for head in range(kv_heads):
        q, k, v, head_columns = grouped[head], key[head], value[head], columns[head]
        parts[head, :, :window] = _sdpa(q[:, :window], k[:window], v[:window], None, scaling)
        column_keys, column_values = k[head_columns], v[head_columns]
        for start, (before, upto) in zip(starts, per_block[head], strict=True):
            stop = min(start + BLOCK, tokens)
            rows, low = stop - start, start - window + 1
            # A column within the block's keys counts as a column only for queries whose band has moved past it.
            query_positions = torch.arange(start, stop, device=columns.device)
            passed = head_columns[before:upto] <= query_positions[:, None] - window
            inside = band.new_zeros(passed.shape).masked_fill_(~passed, -torch.inf)
            bias = torch.cat([band.new_zeros(rows, before), inside, band[:rows, : stop - low]], dim=1)
            keys = torch.cat([column_keys[:upto], k[low:stop]])
            values = torch.cat([column_values[:upto], v[low:stop]])
            parts[head, :, start:stop] = _sdpa(q[:, start:stop], keys, values, bias, scaling)
    return out


def _band_bias(window: int, rows: int, like: Tensor) -> Tensor:
    """Additive mask [rows, window + rows - 1] for `rows` queries and the keys from the first one's band on."""
    key = torch.arange(window + rows - 1, device=like.device)
    row = torch.arange(rows, device=like.device)[:, None]
    outside = (key < row) | (key >= row + window)
    return like.new_zeros(outside.shape).masked_fill_(outside, -torch.inf)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """SDPA of query [group, rows, head_dim] with one KV head's keys; causal without a bias. `expand` copies nothing."""
    group = query.shape[0]
    keys, values = (part.expand(1, group, *part.shape) for part in (key, value))
    return F.scaled_dot_product_attention(query[None], keys, values, bias, is_causal=bias is None, scale=scaling)[0]
