"""Retrieved items, items that stay after compression, and the note on what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results import CompressedPassage, Span


@dataclass(frozen=True)
class RetrievedItem:
    """A retrieved document or node.

    Attributes:
        text: Its text. None for an item without text, such as an image, which always passes unchanged.
        metadata: Its metadata.
        score: The retriever's score; higher is better. None if unknown.
    """

    text: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None


@dataclass(frozen=True)
class KeptItem:
    """An item that stays after compression.

    Attributes:
        index: Its index in the input.
        text: Its new text. None if the item passes unchanged.
        note: JSON-ready value for the metadata key, None if the item passes unchanged: "kept" (character spans in the
            original text), "score", "tokens_before", "tokens_after".
    """

    index: int
    text: str | None = None
    note: dict[str, Any] | None = None


def compose_spans(first: Sequence[Span], length: int, second: Sequence[Span]) -> list[Span]:
    """Map spans in a compressed text to spans in its original.

    Args:
        first: Spans of the original whose pieces, joined by a separator, are the compressed text.
        length: Characters of the compressed text, from which the separator's length follows.
        second: Spans in the compressed text.
    """
    gaps = max(len(first) - 1, 1)
    separator = (length - sum(b - a for a, b in first)) // gaps
    found, position = [], 0
    for a, b in first:
        for start, end in second:
            low, high = max(start, position), min(end, position + b - a)
            if low < high:
                found.append((a + low - position, a + high - position))
        position += b - a + separator
    return found


def note_on(passage: CompressedPassage, before: Any) -> dict[str, Any]:
    """Return the note on a passage; `before` is the note of an earlier compression, or anything else."""
    score = None if math.isnan(passage.score) else passage.score
    kept, tokens_before = passage.kept, passage.tokens_before
    if isinstance(before, dict) and {"kept", "score", "tokens_before"} <= before.keys():
        kept = compose_spans([(a, b) for a, b in before["kept"]], len(passage.original), kept)
        score, tokens_before = before["score"] if score is None else score, before["tokens_before"]
    return {
        "kept": [list(span) for span in kept],
        "score": score,
        "tokens_before": tokens_before,
        "tokens_after": passage.tokens_after,
    }


def title_of(metadata: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first non-blank text under one of `keys`."""
    values = (metadata.get(key) for key in keys)
    return next((value for value in values if isinstance(value, str) and value.strip()), None)
