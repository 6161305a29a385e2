"""Common scales for scores of different kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def standardize(values: Tensor) -> Tensor:
    """Shift and scale values [any] to mean 0 and standard deviation 1; all 0 where they are equal."""
    if len(values) < 2:
        return torch.zeros_like(values)
    values = values - values.mean()
    spread = values.std()
    return values / spread if float(spread) > 1e-9 else torch.zeros_like(values)


def standardize_log(values: Tensor) -> Tensor:
    """`standardize` the logarithms of positive values, for heavy-tailed scores such as attention."""
    return standardize(values.clamp(min=1e-9).log())


def unscaled(values: Tensor) -> Tensor:
    """`values`, for a part that brings its own scale."""
    return values


def standardize_known(values: Sequence[float | None]) -> Tensor:
    """`standardize` numbers; one that is not known counts as the lowest that is. All 0 where none is known."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return torch.zeros(len(values))
    return standardize(
        torch.tensor([float(v) if v is not None and math.isfinite(v) else float(min(known)) for v in values])
    )
