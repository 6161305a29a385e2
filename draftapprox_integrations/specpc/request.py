"""What a compression is asked for, checked: the arguments of `SpecPC.compress` as one object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal

from ..errors import InvalidInputError
from .budget import Budget, Order
from .text.ranking import Pattern
from .text.segmentation import Passage
from .validation import as_passages, check_on_empty, check_protect, check_query

OnEmpty = Literal["drop", "keep_best"]


@dataclass(frozen=True)
class Request:
    """The arguments of one `SpecPC.compress`.

    Attributes:
        items: The passages.
        query: The query.
        limits: How much may be kept, in which order.
        on_empty: Whether a passage may lose everything.
        protect: What is always kept.
    """

    items: list[Passage]
    query: str
    limits: Budget
    on_empty: OnEmpty
    protect: list[Pattern]

    def to_dict(self) -> dict[str, Any]:
        """The body of `POST /v1/compress`.

        Raises:
            InvalidInputError: what JSON cannot carry: a compiled pattern, or an infinite score.
        """
        if any(not isinstance(pattern, str) for pattern in self.protect):
            raise InvalidInputError(
                "a service takes strings in protect, not compiled patterns; give the strings, or load the draft here"
            )
        body = {name: _plain(value) for name, value in asdict(self.limits).items() if value is not None}
        body |= {"passages": [item.text for item in self.items], "query": self.query, "on_empty": self.on_empty}
        if self.protect:
            body["protect"] = list(self.protect)
        if any(item.title is not None for item in self.items):
            body["titles"] = [item.title for item in self.items]
        scores = [item.retriever_score for item in self.items]
        if any(score is not None and math.isinf(score) for score in scores):
            raise InvalidInputError("a service takes finite retriever_scores, or None where none is known")
        if any(score is not None for score in scores):
            body["retriever_scores"] = [None if score is None or math.isnan(score) else score for score in scores]
        return body


def _plain(value: Any) -> Any:
    """A number of any library as Python's, which JSON has."""
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def as_request(
    passages: Iterable[str],
    query: str,
    *,
    max_tokens: int | None = None,
    keep_ratio: float | None = None,
    recall: float | None = None,
    min_relevance: float | None = None,
    top_n: int | None = None,
    order: Order = "input",
    titles: Sequence[str | None] | None = None,
    on_empty: OnEmpty = "drop",
    protect: Sequence[Pattern] = (),
    retriever_scores: Sequence[float | None] | None = None,
) -> Request:
    """Check the arguments of `SpecPC.compress`, which describes them.

    Raises:
        InvalidInputError: one of them is invalid.
    """
    limits = Budget(
        max_tokens=max_tokens,
        keep_ratio=keep_ratio,
        recall=recall,
        min_relevance=min_relevance,
        top_n=top_n,
        order=order,
    )
    items = as_passages(passages, titles, retriever_scores)
    query, patterns = check_query(query), check_protect(protect)
    check_on_empty(on_empty)
    return Request(items, query, limits, on_empty, patterns)
