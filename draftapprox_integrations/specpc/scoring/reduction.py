"""From scores of tokens to scores of the units they belong to. Pure tensor functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import PoolType
from ..selection import pool_scores

# The mean of a sentence is shrunk toward its passage's mean as if it had this many more tokens of average score: short
# sentences (headings, fragments) need high scores to win, and a relevant passage lifts its sentences.
PRIOR_TOKENS = 16


def mean_scores(scores: Tensor, owners: Tensor, units: int) -> Tensor:
    """Mean score of each unit's tokens, shrunk toward the mean of the passage by `PRIOR_TOKENS`.

    Args:
        scores: float32 [tokens] of one passage.
        owners: LongTensor [tokens]: the unit of each token, -1 for none.
        units: Number of units.

    Returns:
        float32 [units].
    """
    inside = owners >= 0
    sums = torch.zeros(units).index_add(0, owners[inside], scores[inside])
    counts = torch.bincount(owners[inside], minlength=units)
    average = scores.mean() if len(scores) else torch.tensor(0.0)
    return (sums + PRIOR_TOKENS * average) / (counts + PRIOR_TOKENS)


@dataclass(frozen=True)
class PooledMax:
    """Highest score among each unit's tokens after pooling along the passage, as in the paper (section 4.2).

    Attributes:
        pool_type, kernel_size: As in `SpecPCConfig`.
    """

    pool_type: PoolType | None
    kernel_size: int

    def __call__(self, scores: Tensor, owners: Tensor, units: int) -> Tensor:
        """float32 [units]; 0 for a unit without tokens. Arguments as for `mean_scores`."""
        pooled = pool_scores(scores, self.pool_type, self.kernel_size) if len(scores) else scores
        inside = owners >= 0
        return torch.zeros(units).scatter_reduce(0, owners[inside], pooled[inside], reduce="amax", include_self=False)
