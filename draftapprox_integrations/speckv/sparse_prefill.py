"""Sparse prefill (paper section 4.1): a prompt token looks at its last neighbours and at a few columns of the prompt.

Every query of the prompt attends to a band, the last `window` keys up to itself, and to the columns before that band:
the keys that the queries of prompt tail and lookahead attend to most, chosen per layer and KV head. The tail itself
attends to everything. So the cost grows with tokens * (window + columns), not with tokens * tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries that share one call. More make fewer calls, but all of them are computed against the keys of each one's band.
BLOCK = 256


def choose_columns(pooled: Tensor, size: int) -> Tensor:
    """Positions of the `size` best scores of each KV head.

    Args:
        pooled: float32 [batch, kv_heads, tokens], -inf at padding.
        size: How many, at least 1.

    Returns:
        LongTensor [batch, kv_heads, min(size, tokens)], ascending.
    """
    # A stable sort, because max pooling makes ties: a row must choose the same alone and in a batch.
    best = pooled.sort(dim=-1, descending=True, stable=True).indices[..., :size]
    return best.sort(dim=-1).values


def vertical_slash(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, window: int, scaling: float) -> Tensor:
    """Attention of one sequence's queries to their band and, before it, to columns.

    Query i sees key j where i - window < j <= i, and where j <= i - window is a column of its KV head. This function is
    the only place that computes it: a fused kernel (FlexAttention, Triton) would take it over with the same arguments.

    Args:
        query: [heads, tokens, head_dim].
        key, value: [kv_heads, tokens, head_dim], not repeated for GQA.
        columns: LongTensor [kv_heads, any], ascending positions.
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
    # How many columns lie before each block's band, and before the band of its last query.
    edges = [(start - window + 1, min(start + BLOCK, tokens) - window) for start in starts]
    bounds = torch.tensor(edges, dtype=torch.long, device=columns.device).flatten()
    counts = torch.searchsorted(columns.contiguous(), bounds.expand(kv_heads, -1).contiguous())
    per_block = counts.view(kv_heads, len(edges), 2).tolist()
    band = _band(window, min(BLOCK, tokens), query)
    for head in range(kv_heads):
        q, k, v, own = grouped[head], key[head], value[head], columns[head]
        parts[head, :, :window] = _sdpa(q[:, :window], k[:window], v[:window], None, scaling)
        column_keys, column_values = k[own], v[own]
        for start, (before, upto) in zip(starts, per_block[head], strict=True):
            stop = min(start + BLOCK, tokens)
            rows, low = stop - start, start - window + 1
            # Columns inside the block's keys are seen as columns only by queries whose own band has moved past them.
            passed = own[before:upto] <= torch.arange(start, stop, device=own.device)[:, None] - window
            inside = band.new_zeros(passed.shape).masked_fill_(~passed, -torch.inf)
            bias = torch.cat([band.new_zeros(rows, before), inside, band[:rows, : stop - low]], dim=1)
            keys = torch.cat([column_keys[:upto], k[low:stop]])
            values = torch.cat([column_values[:upto], v[low:stop]])
            parts[head, :, start:stop] = _sdpa(q[:, start:stop], keys, values, bias, scaling)
    return out


def _band(window: int, rows: int, like: Tensor) -> Tensor:
    """What to add to the logits of `rows` queries and the keys from the first one's band to the last query."""
    key = torch.arange(window + rows - 1, device=like.device)
    row = torch.arange(rows, device=like.device)[:, None]
    outside = (key < row) | (key >= row + window)
    return like.new_zeros(outside.shape).masked_fill_(outside, -torch.inf)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """SDPA of query [group, rows, head_dim] with one head's keys, causal without a bias. Expanding copies nothing."""
    group = query.shape[0]
    keys, values = (part.expand(1, group, *part.shape) for part in (key, value))
    return F.scaled_dot_product_attention(query[None], keys, values, bias, is_causal=bias is None, scale=scaling)[0]


@dataclass(frozen=True)
class SparseAttention:
    """The attention of one layer of the prefill, in place of SDPA.

    Attributes:
        columns: LongTensor [batch, kv_heads, any]: positions, ascending; those in a row's padding do not count.
        starts: Per row its first position that is not padding.
        lengths: Per row its prompt tokens without padding.
        body: Positions from here on are the tail, which attends to everything.
        window: Width of the band.
        size: Columns asked for; a row of fewer than window + size tokens attends to everything, as it does alone.
        mask, scaling: as `Observer.observe` received them.
    """

    columns: Tensor
    starts: list[int]
    lengths: list[int]
    body: int
    window: int
    size: int
    mask: Tensor | None
    scaling: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, tokens, heads, head_dim]; queries in the padding attend to nothing and give zeros."""
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            piece = slice(min(start, self.body), self.body)
            out[row, : piece.start] = 0  # not empty: NaN there would reach the others through later layers
            if start >= self.body:
                continue
            real = min(self.columns.shape[-1], self.body - start)  # padding scores lowest and comes first
            columns = self.columns[row, :, self.columns.shape[-1] - real :] - start
            window = self.window if length >= self.window + self.size else length
            found = vertical_slash(
                query[row, :, piece], key[row, :, piece], value[row, :, piece], columns, window, self.scaling
            )
            out[row, piece] = found.transpose(0, 1)
        out[:, self.body :] = self._tail(query[:, :, self.body :], key, value).transpose(1, 2)
        return out

    def _tail(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Dense attention of the last queries. A group's heads are stacked as rows, so K and V are not repeated."""
        (heads, rows), (kv_heads, total) = query.shape[1:3], key.shape[1:3]
        group = heads // kv_heads
        if self.mask is None:
            allowed = torch.ones(rows, total, dtype=torch.bool, device=query.device).tril(total - rows)
            allowed = allowed.repeat(group, 1)
        else:
            allowed = self.mask[:, :, self.body :, :total].repeat(1, 1, group, 1)
        stacked = query.unflatten(1, (kv_heads, group)).flatten(2, 3)
        out: Tensor = F.scaled_dot_product_attention(stacked, key, value, allowed, scale=self.scaling)
        return out.view(query.shape[0], heads, rows, -1)
