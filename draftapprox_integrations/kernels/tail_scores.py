"""The attention of the last queries, reduced to one number per key: the scores of SpecKV and SpecPC (paper section 4).

The kernels hold no matrix of queries and keys: one pass finds the log-sum-exp of each query, a second one the weights
of a block of keys, reduced at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .dispatch import dispatch

Reduction = Literal["max", "sum"]


def tail_scores(
    query: Tensor,
    key: Tensor,
    first_keys: Tensor,
    query_weights: Tensor,
    columns: int,
    scaling: float,
    reduction: Reduction,
) -> Tensor:
    """Reduce the causal softmax attention of the last queries over them and over the heads of a KV head.

    Args:
        query: [batch, heads, new tokens, head_dim], float32, float16 or bfloat16; the last token is that of the last
            key.
        key: [batch, kv_heads, tokens, head_dim], in the query's dtype.
        first_keys: int64 [batch], the index of each row's first key that is not padding.
        query_weights: bool or float32 [batch, rows], at least 0: factor of the attention of each of the last `rows`
            queries. With 0 a query counts for nothing, and may be padding.
        columns: Number of keys to score, the first ones.
        scaling: Factor of query @ key.
        reduction: "max" or "sum".

    Returns:
        float32 [batch, kv_heads, columns]; 0 at padding.
    """
    return dispatch(query, _triton_form, torch_form, query, key, first_keys, query_weights, columns, scaling, reduction)


def _triton_form(
    query: Tensor,
    key: Tensor,
    first_keys: Tensor,
    query_weights: Tensor,
    columns: int,
    scaling: float,
    reduction: Reduction,
) -> Tensor:
    from .triton_tail_scores import reduce_tail

    return reduce_tail(query, key, first_keys, query_weights, columns, scaling, reduction)


def torch_form(
    query: Tensor,
    key: Tensor,
    first_keys: Tensor,
    query_weights: Tensor,
    columns: int,
    scaling: float,
    reduction: Reduction,
) -> Tensor:
    """Compute `tail_scores` with PyTorch, in pieces."""
    rows = query_weights.shape[1]
    mask = causal_mask(first_keys, rows, key.shape[2])
    return masked_tail_scores(query[:, :, -rows:], key, mask, query_weights, columns, scaling, reduction)


def causal_mask(first_keys: Tensor, rows: int, total: int) -> Tensor:
    """Bool [batch, 1, rows, total]: what the last `rows` of `total` tokens attend to after left padding."""
    keys = torch.arange(total, device=first_keys.device)
    return (keys <= keys[total - rows :, None]) & (keys >= first_keys[:, None, None, None])


def masked_tail_scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    query_weights: Tensor,
    columns: int,
    scaling: float,
    reduction: Reduction,
) -> Tensor:
    """Compute `tail_scores` under any mask with PyTorch; `mask` as for `tail_attention`, the rest as there."""
    batch, kv_heads = key.shape[:2]
    group = query.shape[1] // kv_heads
    scores = torch.zeros(batch, kv_heads, columns, device=query.device)
    factors = query_weights[:, None, :, None]
    ignored = factors == 0
    for head_slice, piece_rows, attention in tail_attention(query, key, mask, scaling, query_weights.shape[1]):
        kv = head_slice.start // group
        # A padded query attends to nothing: its softmax is NaN. Any other NaN stays, to be reported.
        weights = attention[..., :columns].masked_fill_(ignored[:, :, piece_rows], 0.0).mul_(factors[:, :, piece_rows])
        if reduction == "max":
            scores[:, kv] = torch.maximum(scores[:, kv], weights.amax(dim=(1, 2)))
        else:
            scores[:, kv] += weights.sum(dim=(1, 2))
    return scores


def tail_attention(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, rows: int, budget: int = 1 << 22
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compute the softmax attention of the last `rows` queries in small pieces.

    Args:
        query, key, mask, scaling: As `models.attention.Observer.observe` receives them.
        rows: Number of last queries; at most query.shape[2].
        budget: Most float32 elements in one piece.

    Yields:
        (heads, piece_rows, weights): the slice of query heads, the slice of the `rows` queries, and float32 weights
        [batch, heads in piece, rows in piece, keys] that sum to 1 over keys.
    """
    batch, heads, new, _ = query.shape
    kv_heads, total = key.shape[1], key.shape[2]
    group = heads // kv_heads
    step = max(1, min(rows, budget // max(1, batch * group * total)))
    causal = None if mask is not None else torch.arange(total, device=key.device)
    for kv in range(kv_heads):
        head_slice = slice(kv * group, (kv + 1) * group)
        keys = key[:, kv : kv + 1].float().transpose(-1, -2)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            first, last = new - rows + start, new - rows + stop
            logits = torch.matmul(query[:, head_slice, first:last].float() * scaling, keys)
            if causal is not None:
                positions = torch.arange(total - new + first, total - new + last, device=key.device)
                logits.masked_fill_(causal[None, :] > positions[:, None], float("-inf"))
            else:
                assert mask is not None
                piece = mask[:, head_slice] if mask.shape[1] == heads else mask
                piece = piece[:, :, first:last, :total]
                if piece.dtype == torch.bool:
                    logits.masked_fill_(~piece, float("-inf"))
                else:
                    logits += piece
            yield head_slice, slice(start, stop), torch.softmax(logits, dim=-1)


class LeftPadding:
    """Reads left padding off the masks of a forward pass. Each is looked at once, as its layers share it."""

    def __init__(self) -> None:
        self._known = WeakIdKeyDictionary()

    def first_keys(self, mask: Tensor | None, key: Tensor, query_weights: Tensor) -> Tensor | None:
        """Return `first_keys` for `tail_scores`, or None if the mask is not causal attention after left padding.

        Args:
            mask: As `models.attention.Observer.observe` receives it.
            key, query_weights: As for `tail_scores`. Queries of weight 0 may attend to anything.
        """
        batch, total = key.shape[0], key.shape[2]
        if mask is None:
            return torch.zeros(batch, dtype=torch.long, device=key.device)
        if mask not in self._known:
            self._known[mask] = _read_left_padding(mask, batch, total, query_weights)
        found: Tensor | None = self._known[mask]
        return found


def _read_left_padding(mask: Tensor, batch: int, total: int, query_weights: Tensor) -> Tensor | None:
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        return None
    rows = query_weights.shape[1]
    tail = mask[:, :, -rows:, :total].expand(batch, -1, -1, -1)
    first_keys = tail[:, 0, -1].int().argmax(dim=-1)
    differs = tail != causal_mask(first_keys, rows, total)
    return None if bool((differs & (query_weights != 0)[:, None, :, None]).any()) else first_keys
