"""Split passages into the units that are kept or dropped whole: sentences, words, or the draft's tokens.

The units of a passage are character spans in reading order that do not overlap and tear no grapheme cluster; between
them is only white space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import regex

from ...config import Granularity
from ...results import Span
from .blocks import MAX_UNIT_CHARACTERS, split_units
from .graphemes import Clusters
from .sentences import strip

# Scripts written without spaces: every character counts as a word.
_UNSPACED = (
    "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\U00020000-\U0003ffff"
)
_WORD = regex.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]++")


@dataclass(frozen=True)
class Passage:
    """A passage as scorers receive it.

    Attributes:
        text: The text.
        title: Its title, or None.
        retriever_score: The retriever's score, the higher the better; None if unknown.
    """

    text: str
    title: str | None = None
    retriever_score: float | None = None


@dataclass(frozen=True)
class Sentence:
    """A unit of text that is kept or dropped whole; at finer granularity a word or a token.

    Attributes:
        passage: Index of its passage.
        start, end: Character span [start, end) in the passage.
        text: The characters of that span.
        section_end: For a heading, a table's header, or the key of nested data: where what it speaks for ends. It is
            kept with what it speaks for.
        is_title: Whether it is a heading, which is never kept by itself.
    """

    passage: int
    start: int
    end: int
    text: str = field(compare=False)
    section_end: int | None = field(default=None, compare=False)
    is_title: bool = field(default=False, compare=False)


def segment(
    passages: Sequence[str],
    granularity: Granularity = "sentence",
    token_spans: Sequence[Sequence[Span]] | None = None,
    *,
    max_characters: int | Sequence[int] = MAX_UNIT_CHARACTERS,
) -> list[list[Sentence]]:
    """Split passages into units.

    Args:
        passages: Texts.
        granularity: "sentence" (also rows of tables, lines of records, items of lists and JSON, functions of code),
            "word" or "token".
        token_spans: Per passage the character spans of its tokens; needed for "token" only.
        max_characters: Most characters of a unit of granularity "sentence", for all passages or for each: longer ones
            are cut.

    Returns:
        Per passage its units in reading order; none for blank text.
    """
    limits = [max_characters] * len(passages) if isinstance(max_characters, int) else max_characters
    units = []
    for index, (text, limit) in enumerate(zip(passages, limits, strict=True)):
        if granularity == "sentence":
            found = split_units(text, limit)
            units.append(
                [Sentence(index, u.start, u.end, text[u.start : u.end], u.section_end, u.is_title) for u in found]
            )
            continue
        if granularity == "token":
            spans = merge_tokens(text, token_spans[index] if token_spans is not None else ())
        else:
            spans = words(text)
        units.append([Sentence(index, start, end, text[start:end]) for start, end in spans])
    return units


def sentences(text: str, max_characters: int = MAX_UNIT_CHARACTERS) -> list[Span]:
    """Spans of the units of granularity "sentence"."""
    return [(unit.start, unit.end) for unit in split_units(text, max_characters)]


def headers_of(units: Sequence[Sentence]) -> list[list[int]]:
    """For each unit the indices of the headings, headers and keys that speak for it, the nearest first.

    Args:
        units: Units in reading order, of one passage or of several.
    """
    found: list[list[int]] = []
    open_sections: list[int] = []
    for index, unit in enumerate(units):
        while open_sections:
            header = units[open_sections[-1]]
            if header.passage == unit.passage and header.section_end is not None and header.section_end > unit.start:
                break
            open_sections.pop()
        found.append(open_sections[::-1])
        if unit.section_end is not None:
            open_sections.append(index)
    return found


def words(text: str) -> list[Span]:
    """Spans of words: runs without white space; single characters of scripts written without spaces."""
    return merge_tokens(text, [match.span() for match in _WORD.finditer(text)])


def merge_tokens(text: str, tokens: Sequence[Span]) -> list[Span]:
    """Spans of tokens without white space; tokens that share a grapheme cluster are merged."""
    clusters = Clusters(text)
    units: list[Span] = []
    for start, end in tokens:
        start, end = strip(text, start, end)
        if start >= end:
            continue
        start, end = clusters.floor(start), clusters.ceil(end)
        if units and start < units[-1][1]:
            units[-1] = (units[-1][0], max(end, units[-1][1]))
        else:
            units.append((start, end))
    return units


def join_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """Merge ascending spans that overlap or have only white space between them."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and not text[merged[-1][1] : start].strip():
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def assign_tokens(units: Sequence[Span], tokens: Sequence[Span]) -> list[int]:
    """Index of the unit that each token shares most characters with; -1 for a token of white space.

    Args:
        units: Character spans of the units, ascending.
        tokens: Character spans of the tokens, ascending.
    """
    owners: list[int] = []
    current = 0
    for start, end in tokens:
        while current < len(units) and units[current][1] <= start:
            current += 1
        best, overlap = -1, 0
        for index in range(current, len(units)):
            if units[index][0] >= end:
                break
            shared = min(end, units[index][1]) - max(start, units[index][0])
            if shared > overlap:
                best, overlap = index, shared
        owners.append(best)
    return owners
