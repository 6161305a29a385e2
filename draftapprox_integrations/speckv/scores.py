"""From attention weights to the KV pairs that stay (golden README, SpecKV rules 2-4). Pure tensor functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Reduction


def pool_kv_scores(scores: Tensor, padding: Tensor, pool_type: Reduction, kernel_size: int) -> Tensor:
    """Smooth scores along the prompt with stride 1; a row's padding counts as the edge of the prompt.

    Args:
        scores: float32 [batch, kv_heads, tokens].
        padding: bool [batch, tokens], True at padding.
        pool_type: "mean" counts zeros beyond the edges, "max" ignores what is beyond.
        kernel_size: odd width.

    Returns:
        float32 [batch, kv_heads, tokens]; -inf at padding.
    """
    half = kernel_size // 2
    outside = padding[:, None]
    if pool_type == "max":
        pooled = F.max_pool1d(scores.masked_fill(outside, -torch.inf), kernel_size, stride=1, padding=half)
    else:
        pooled = F.avg_pool1d(scores.masked_fill(outside, 0.0), kernel_size, stride=1, padding=half)
    return pooled.masked_fill(outside, -torch.inf)


def choose_kv(pooled: Tensor, real: Tensor, capacity: int, window: int) -> Tensor:
    """Positions of the `capacity` KV pairs that each KV head keeps.

    The last prompt token is not among them: it is fed again when decoding starts. A row with no more than `capacity`
    pairs keeps all of them, behind as many positions of its left padding as are missing.

    Args:
        pooled: float32 [batch, kv_heads, tokens - window - 1], -inf at padding.
        real: LongTensor [batch]: prompt tokens that are not padding; the prompt is padded on the left.
        capacity: pairs to keep per KV head, at least `window`, less than the prompt's tokens.
        window: last positions before the final one that are always kept.

    Returns:
        LongTensor [batch, kv_heads, capacity], ascending.
    """
    batch, heads, before_window = pooled.shape
    last = before_window + window  # position of the final prompt token
    recent = torch.arange(before_window, last, device=pooled.device).expand(batch, heads, window)
    # A stable sort, because max pooling makes ties: a row must choose the same alone and in a batch.
    best = pooled.sort(dim=-1, descending=True, stable=True).indices[..., : capacity - window]
    chosen = torch.cat([best, recent], dim=-1).sort(dim=-1).values
    newest = torch.arange(last - capacity, last, device=pooled.device).expand(batch, heads, capacity)
    short = (real - 1 <= capacity).to(pooled.device)
    return torch.where(short[:, None, None], newest, chosen)


def share_kv(pooled: Tensor, real: Tensor, capacity: int, window: int, floor_alpha: float) -> Tensor:
    """The KV pairs that each KV head keeps where the heads of a layer share one budget (Ada-KV, arXiv 2407.11550).

    Every head keeps its window and its best `floor_alpha * (capacity - window)` pairs, rounded up; what is left of
    `capacity * kv_heads` goes to the highest scores of all heads together. (Ada-KV's own safeguard instead blends the
    counts of an unrestrained choice with the uniform ones.) Else as `choose_kv`, which it equals with floor_alpha 1;
    of equal scores the lower head's goes first.

    Args:
        pooled: float32 [batch, kv_heads, tokens - window - 1], -inf at padding.
        real: LongTensor [batch]: prompt tokens that are not padding; the prompt is padded on the left.
        capacity: mean number of pairs to keep per KV head, at least `window`, less than the prompt's tokens.
        window: last positions before the final one that are always kept.
        floor_alpha: in [0, 1].

    Returns:
        bool [batch, kv_heads, tokens - 1], True at what is kept; padding never is.
    """
    batch, heads, before_window = pooled.shape
    last = before_window + window  # position of the final prompt token
    beyond = capacity - window
    floor = math.ceil(floor_alpha * beyond - 1e-9)  # 0.07 * 100 is a little more than 7
    # Stable sorts, because max pooling makes ties: a row must choose the same alone and in a batch.
    own = pooled.sort(dim=-1, descending=True, stable=True).indices[..., :floor]
    ranked = pooled.scatter(2, own, torch.inf).flatten(1).sort(dim=-1, descending=True, stable=True).indices
    keep = torch.zeros(batch, heads * before_window, dtype=torch.bool, device=pooled.device)
    keep = keep.scatter(1, ranked[:, : beyond * heads], True).view(batch, heads, before_window)
    keep = F.pad(keep, (0, window), value=True)
    pairs = (real.to(pooled.device) - 1)[:, None, None]
    everything = torch.arange(last, device=pooled.device) >= last - pairs
    return torch.where(pairs <= capacity, everything, keep)
