"""How much a compression may keep (tokens, a share of them or of the evidence, relevance, passages), in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .scoring.scorer import SentenceScores

Order = Literal["input", "relevance"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one compression; each that is given holds.

    Attributes:
        max_tokens: Most tokens to keep, >= 1.
        keep_ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`.
        recall: Share of the expected evidence to keep, in (0, 1], with as few sentences as that takes.
        min_relevance: Lowest probability of a kept sentence to be evidence, in [0, 1].
        top_n: Most passages of which something is kept, >= 1: the most relevant ones.
        order: Order of the passages in the result: as given, or the most relevant first.

    Raises:
        InvalidInputError: names the argument, the value and the limit.
    """

    max_tokens: int | None = None
    keep_ratio: float | None = None
    recall: float | None = None
    min_relevance: float | None = None
    top_n: int | None = None
    order: Order = "input"

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.keep_ratio is not None:
            raise InvalidInputError(
                f"give max_tokens or keep_ratio, not both; got {self.max_tokens!r} and {self.keep_ratio!r}"
            )
        for name in ("max_tokens", "top_n"):
            value: Any = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise InvalidInputError(f"{name} must be an integer >= 1; got {value!r}")
        for name, above in (("keep_ratio", True), ("recall", True), ("min_relevance", False)):
            value = getattr(self, name)
            if value is None:
                continue
            number = not isinstance(value, bool) and isinstance(value, Real)
            if not number or not 0 <= float(value) <= 1 or (above and float(value) == 0):
                raise InvalidInputError(f"{name} must be in {'(' if above else '['}0, 1]; got {value!r}")
        if self.order not in ("input", "relevance"):
            raise InvalidInputError(f"order must be 'input' or 'relevance'; got {self.order!r}")

    @property
    def needs_probabilities(self) -> bool:
        """Whether scores must be probabilities."""
        return self.recall is not None or self.min_relevance is not None

    @property
    def selects(self) -> bool:
        """Whether something may be dropped although all of it fits the tokens."""
        return self.needs_probabilities or self.top_n is not None

    @property
    def needs_scores(self) -> bool:
        """Whether the passages must be scored although all of them fit."""
        return self.selects or self.order == "relevance"

    def tokens(self, default: int, total: int) -> int:
        """Most tokens to keep of `total`; `default` where no limit of any kind is given."""
        if self.keep_ratio is not None:
            return max(1, math.floor(float(self.keep_ratio) * total + 1e-9))
        if self.max_tokens is not None:
            return int(self.max_tokens)
        return max(1, total) if self.selects else default

    def check_scores(self, scores: SentenceScores) -> None:
        """Raises:
        InvalidInputError: probabilities are needed, and these are none.
        """
        if self.needs_probabilities and not scores.are_probabilities:
            name = "recall" if self.recall is not None else "min_relevance"
            raise InvalidInputError(
                f'{name} needs the probability of each sentence to be evidence, which scorer "fused" gives with '
                "sentences as units; other scorers give scores. Use max_tokens or keep_ratio."
            )

    def eligible(self, scores: Sequence[Tensor]) -> list[bool]:
        """Which sentences may be kept.

        Args:
            scores: Per passage float32 [sentences]; probabilities where `needs_probabilities`.

        Returns:
            One bool for each sentence, passage after passage.
        """
        if not sum(map(len, scores)):
            return []
        values = torch.cat(list(scores))
        kept = torch.ones(len(values), dtype=torch.bool)
        if self.top_n is not None and self.top_n < len(scores):
            best = torch.tensor([float(group.max()) if len(group) else -math.inf for group in scores])
            chosen = torch.zeros(len(scores), dtype=torch.bool)
            chosen[best.argsort(descending=True, stable=True)[: self.top_n]] = True
            kept &= chosen.repeat_interleave(torch.tensor([len(group) for group in scores]))
        if self.min_relevance is not None:
            kept &= values >= self.min_relevance
        if self.recall is not None and self.recall < 1:
            order = values.argsort(descending=True, stable=True)
            before = values[order].double().cumsum(0) - values[order]
            enough = before >= self.recall * float(values.double().sum())
            kept[order[enough]] = False
        return [bool(value) for value in kept]
