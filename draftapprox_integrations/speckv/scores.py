"""Attention scores of KV pairs and the selection of the pairs to keep. Pure tensor functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Reduction


def pool_kv_scores(scores: Tensor, padding: Tensor, pool_type: Reduction, kernel_size: int) -> Tensor:
    """Smooth scores along the prompt with stride 1; padding counts as beyond the prompt's edge.

    Args:
        scores: float32 [batch, kv_heads, tokens].
        padding: bool [batch, tokens], True at padding.
        pool_type: "mean" counts zeros beyond the edges; "max" ignores positions beyond them.
        kernel_size: Width in tokens, odd.

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


def select_uniform(pooled: Tensor, lengths: Tensor, capacity: int, window: int) -> Tensor:
    """Select `capacity` KV pairs per KV head: the window and the highest scores before it.

    The last prompt token is never selected: it is fed again when decoding starts. A row with at most `capacity` pairs
    keeps all of them, preceded by positions of its left padding to make up the number.

    Args:
        pooled: float32 [batch, kv_heads, tokens - window - 1], -inf at padding.
        lengths: LongTensor [batch]: prompt tokens without padding; prompts are padded on the left.
        capacity: Pairs to keep per KV head, at least `window`, less than the number of prompt tokens.
        window: Number of last positions before the final one that are always kept.

    Returns:
        LongTensor [batch, kv_heads, capacity]: indices into the prompt, ascending.
    """
    batch, heads, before_window = pooled.shape
    last = before_window + window  # index of the final prompt token
    recent = torch.arange(before_window, last, device=pooled.device).expand(batch, heads, window)
    # The sort is stable because max pooling makes ties: a row must select the same alone and in a batch.
    best = pooled.sort(dim=-1, descending=True, stable=True).indices[..., : capacity - window]
    selected = torch.cat([best, recent], dim=-1).sort(dim=-1).values
    newest = torch.arange(last - capacity, last, device=pooled.device).expand(batch, heads, capacity)
    fits = (lengths - 1 <= capacity).to(pooled.device)
    return torch.where(fits[:, None, None], newest, selected)


def select_adaptive(pooled: Tensor, lengths: Tensor, capacity: int, window: int, floor_alpha: float) -> Tensor:
    """Select KV pairs where the heads of a layer share one budget (Ada-KV, arXiv 2407.11550).

    Every head keeps its window and its best `floor_alpha * (capacity - window)` pairs, rounded up. The rest of
    `capacity * kv_heads` goes to the highest scores of all heads; of equal scores, the lower head's goes first. (Ada-KV
    itself blends unrestricted per-head counts with the uniform ones.) With `floor_alpha=1` it equals `select_uniform`.

    Args:
        pooled: float32 [batch, kv_heads, tokens - window - 1], -inf at padding.
        lengths: LongTensor [batch]: prompt tokens without padding; prompts are padded on the left.
        capacity: Mean number of pairs to keep per KV head, at least `window`, less than the number of prompt tokens.
        window: Number of last positions before the final one that are always kept.
        floor_alpha: Share of `capacity - window` that every head keeps, in [0, 1].

    Returns:
        bool [batch, kv_heads, tokens - 1], True at kept pairs; False at padding.
    """
    batch, heads, before_window = pooled.shape
    last = before_window + window  # index of the final prompt token
    beyond = capacity - window
    floor = math.ceil(floor_alpha * beyond - 1e-9)  # 0.07 * 100 is a little more than 7
    # The sorts are stable because max pooling makes ties: a row must select the same alone and in a batch.
    head_best = pooled.sort(dim=-1, descending=True, stable=True).indices[..., :floor]
    ranked = pooled.scatter(2, head_best, torch.inf).flatten(1).sort(dim=-1, descending=True, stable=True).indices
    keep = torch.zeros(batch, heads * before_window, dtype=torch.bool, device=pooled.device)
    keep = keep.scatter(1, ranked[:, : beyond * heads], True).view(batch, heads, before_window)
    keep = F.pad(keep, (0, window), value=True)
    pairs = (lengths.to(pooled.device) - 1)[:, None, None]
    all_pairs = torch.arange(last, device=pooled.device) >= last - pairs
    return torch.where(pairs <= capacity, all_pairs, keep)
