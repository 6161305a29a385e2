"""From attention weights to the KV pairs that stay (golden README, SpecKV rules 2-4). Pure tensor functions."""

from __future__ import annotations

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
