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

from ..kernels.vertical_slash import vertical_slash


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
