"""Retrieved items, items that stay after compression, and the note on what was kept."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel

from ..results import CompressedPassage, Span

Model = TypeVar("Model", bound=BaseModel)

# Absolute, or relative with the suffix of a file.
_PATH = re.compile(r"\s*(?:[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|.*[/\\][^/\\]*\.\w{1,8}\s*$)", re.DOTALL)


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
            original text), "score", "tokens_before", "tokens_after", and "fingerprint" of the new text: a note beside
            another text, such as that of a split document, says nothing about it.
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
    """Return the note on a passage.

    Args:
        passage: The compressed passage.
        before: The value under the metadata key. The note of an earlier compression that made the passage's text is
            continued: its spans are those of the first original. Anything else is ignored.
    """
    score = None if math.isnan(passage.score) else passage.score
    kept, tokens_before = passage.kept, passage.tokens_before
    is_note = isinstance(before, dict) and {"kept", "score", "tokens_before", "fingerprint"} <= before.keys()
    if is_note and before["fingerprint"] == _fingerprint(passage.original):
        kept = compose_spans([(a, b) for a, b in before["kept"]], len(passage.original), kept)
        score, tokens_before = before["score"] if score is None else score, before["tokens_before"]
    return {
        "kept": [list(span) for span in kept],
        "score": score,
        "tokens_before": tokens_before,
        "tokens_after": passage.tokens_after,
        "fingerprint": _fingerprint(passage.text),
    }


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def title_of(metadata: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first non-blank text under one of `keys`; of a path under "source" the file's name."""
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, PurePath):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return _file_name(value) if key == "source" else value
    return None


def _file_name(source: str) -> str:
    """Return the last part of a file's path. Anything else stays: an address, a title with a slash in it."""
    name = re.split(r"[/\\]", source.strip())[-1]
    if name and _PATH.match(source) and "://" not in source:
        return name
    return source


def copy_model(model: Model, shared: Collection[str] = ()) -> Model:
    """Return a deep copy of a document or node; values that cannot be copied, such as a lock or a file, are shared.

    Args:
        model: The document or node.
        shared: Names of fields that are not copied.
    """
    copied = model.model_copy()
    for values in (copied.__dict__, copied.__pydantic_extra__ or {}, copied.__pydantic_private__ or {}):
        values.update({name: _copy(value) for name, value in values.items() if name not in shared})
    return copied


def _copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # somebody else's code
        if type(value) is dict:
            return {key: _copy(inner) for key, inner in value.items()}
        if type(value) in (list, tuple):
            return type(value)(_copy(inner) for inner in value)
        return value
