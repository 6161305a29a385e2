"""Choose the tokens to keep from their scores (golden README rules 4-7). Pure tensor functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import PoolType


def pool_scores(scores: Tensor, pool_type: PoolType | None, kernel_size: int) -> Tensor:
    """Smooth scores [tokens] with stride 1 and zero padding, (kernel_size - 1) // 2 of it on the left.

    The average divides by `kernel_size` at the edges too. Returns float32 [tokens].
    """
    if pool_type is None or kernel_size == 1:
        return scores
    left = (kernel_size - 1) // 2
    padded = F.pad(scores[None, None], (left, kernel_size - 1 - left))
    if pool_type == "max":
        return F.max_pool1d(padded, kernel_size, stride=1)[0, 0]
    return F.avg_pool1d(padded, kernel_size, stride=1)[0, 0]


def rank_scores(scores: Tensor) -> Tensor:
    """LongTensor [tokens]: positions from the highest score to the lowest; equal scores in reading order."""
    return torch.sort(scores, descending=True, stable=True).indices


def with_neighbors(ranked: Tensor, neighbor_tokens: int, tokens: int) -> Tensor:
    """Follow each position by its neighbours, nearest first, without repeats.

    Args:
        ranked: LongTensor [any], positions, best first.
        neighbor_tokens: Number of positions each brings, itself included; an even number extends one further right.
        tokens: Length of the sequence; positions are clamped to it.

    Returns:
        LongTensor [>= len(ranked)]: positions in the order in which they should be kept.
    """
    if neighbor_tokens <= 1 or len(ranked) == 0:
        return ranked
    reach = (neighbor_tokens - 1) // 2
    offsets = torch.arange(-reach, neighbor_tokens - reach, device=ranked.device)
    offsets = offsets[torch.sort(offsets.abs(), stable=True).indices]
    return first_occurrences((ranked[:, None] + offsets).clamp(0, tokens - 1).flatten(), tokens)


def first_occurrences(positions: Tensor, tokens: int) -> Tensor:
    """`positions` (each in [0, tokens)) without repeats, in order of first appearance."""
    first = torch.full((tokens,), len(positions), dtype=torch.long, device=positions.device)
    order = torch.arange(len(positions), device=positions.device)
    first.scatter_reduce_(0, positions, order, reduce="amin")
    present = (first < len(positions)).nonzero().flatten()
    return present[torch.argsort(first[present])]


def select_tokens(
    pooled: Tensor, capacity: int, window: int, neighbor_tokens: int, protected: Tensor | None = None
) -> Tensor:
    """Positions of the `capacity` tokens to keep, ascending.

    The last `window` positions and the protected ones come first, then the highest scores with their neighbours.

    Args:
        pooled: float32 [tokens].
        capacity: Number of tokens to keep; at least `window` plus the protected ones outside it.
        window: Number of last tokens, always kept.
        neighbor_tokens: As for `with_neighbors`; 0 for none.
        protected: bool [tokens] or None.

    Returns:
        LongTensor [min(capacity, tokens)].
    """
    tokens = len(pooled)
    if capacity >= tokens:
        return torch.arange(tokens, device=pooled.device)
    fixed = torch.arange(tokens - window, tokens, device=pooled.device)
    if protected is not None:
        fixed = torch.cat([fixed, protected.nonzero().flatten()])
    best = with_neighbors(rank_scores(pooled)[:capacity], neighbor_tokens, tokens)
    keep = first_occurrences(torch.cat([fixed, best]), tokens)[:capacity]
    return keep.sort().values
