"""Sparse prefill (paper section 4.1): prompt tokens attend to a band and to a few columns (a vertical-slash pattern).

The band is the last `window` keys up to the query's own. The columns, before the band, are the keys with the highest
scores from the queries of window and lookahead, per layer and KV head. The tail (window and lookahead) attends to
everything. The cost grows with tokens * (window + columns) instead of tokens * tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries per attention call. Larger blocks need fewer calls, but each query is computed against all bands of its block.
BLOCK = 256


def select_columns(pooled: Tensor, count: int) -> Tensor:
    """Select the `count` keys with the highest scores of each KV head.

    Args:
        pooled: float32 [batch, kv_heads, tokens], -inf at padding.
        count: Number of columns, at least 1.

    Returns:
        LongTensor [batch, kv_heads, min(count, tokens)]: indices into the prompt, ascending.
    """
    # The sort is stable because max pooling makes ties: a row must select the same alone and in a batch.
    best = pooled.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return best.sort(dim=-1).values


def vertical_slash(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    """Compute one sequence's attention to a band and, before it, to columns.

    Query i attends to key j where i - window < j <= i, and where j <= i - window is a column of its KV head. A fused
    kernel (FlexAttention, Triton) could replace this function with the same arguments.

    Args:
        query: [heads, tokens, head_dim].
        key, value: [kv_heads, tokens, head_dim], not repeated for GQA.
        columns: LongTensor [kv_heads, any]: indices into the sequence, ascending.
        window: Width of the band, at least 1.
        scaling: Factor of query @ key.

    Returns:
        [heads, tokens, head_dim of value].
    """
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


@dataclass(frozen=True)
class SparseAttention:
    """Attention of one layer of the sparse prefill, called instead of SDPA.

    Attributes:
        columns: LongTensor [batch, kv_heads, any]: indices into the padded prompt, ascending; those at padding are
            ignored.
        starts: Per row the index of its first token that is not padding.
        lengths: Per row its number of prompt tokens without padding.
        tail_start: Index of the first tail token. The tail attends to everything.
        window: Width of the band in tokens.
        column_count: Columns requested. A row shorter than window + column_count attends to everything, as it does
            alone.
        mask, scaling: As `Observer.observe` received them.
    """

    columns: Tensor
    starts: list[int]
    lengths: list[int]
    tail_start: int
    window: int
    column_count: int
    mask: Tensor | None
    scaling: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute the attention as [batch, tokens, heads, head_dim]; zero for queries at padding."""
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            body = slice(min(start, self.tail_start), self.tail_start)
            out[row, : body.start] = 0  # uninitialized NaN would reach other rows through later layers
            if start >= self.tail_start:
                continue
            # Padding scores lowest and has the lowest indices, so its columns come first.
            count = min(self.columns.shape[-1], self.tail_start - start)
            columns = self.columns[row, :, self.columns.shape[-1] - count :] - start
            window = self.window if length >= self.window + self.column_count else length
            attended = vertical_slash(
                query[row, :, body], key[row, :, body], value[row, :, body], columns, window, self.scaling
            )
            out[row, body] = attended.transpose(0, 1)
        out[:, self.tail_start :] = self._tail(query[:, :, self.tail_start :], key, value).transpose(1, 2)
        return out

    def _tail(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Dense attention of the tail. The heads of a group are stacked as rows, so K and V are not repeated."""
        (heads, rows), (kv_heads, total) = query.shape[1:3], key.shape[1:3]
        group = heads // kv_heads
        if self.mask is None:
            allowed = torch.ones(rows, total, dtype=torch.bool, device=query.device).tril(total - rows)
            allowed = allowed.repeat(group, 1)
        else:
            allowed = self.mask[:, :, self.tail_start :, :total].repeat(1, 1, group, 1)
        stacked = query.unflatten(1, (kv_heads, group)).flatten(2, 3)
        out: Tensor = F.scaled_dot_product_attention(stacked, key, value, allowed, scale=self.scaling)
        return out.view(query.shape[0], heads, rows, -1)
