"""What a splitter yields: a piece of text that is kept or dropped whole."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import regex

from .graphemes import Clusters
from .sentences import strip

# Where a unit that is too long is cut, the best place first: lines, clauses, items, words.
_CUTS = [
    regex.compile(pattern)
    for pattern in (r"\n++", r"[;\uff1b]\s*+", r"[,\u060c]\s++|[\uff0c\u3001]\s*+", r"[,|&]|>(?=<)", r"\s++")
]


@dataclass(frozen=True)
class Unit:
    """A character span, and what it speaks for.

    Attributes:
        start, end: Character span [start, end).
        section_end: For a heading, a table's header or the key of nested data: where what it speaks for ends.
        is_title: Whether it is a heading, which means nothing without text of its section.
    """

    start: int
    end: int
    section_end: int | None = None
    is_title: bool = False


def cut(text: str, unit: Unit, limit: int, clusters: Clusters) -> list[Unit]:
    """Cut a unit of more than `limit` characters into pieces of about half of that; other units stay.

    Cuts are made behind lines, clauses or items where there are some, else between words, else between characters.
    """
    if unit.end - unit.start <= limit:
        return [unit]
    spans = _cut(text, unit.start, unit.end, max(1, limit // 2), clusters, 0)
    pieces: list[Unit] = []
    for start, end in spans:
        start, end = strip(text, start, end)
        start = max(clusters.floor(start), pieces[-1].end if pieces else unit.start)
        if start < end:
            pieces.append(Unit(start, clusters.ceil(end)))
    return pieces


def _cut(text: str, start: int, end: int, size: int, clusters: Clusters, level: int) -> list[tuple[int, int]]:
    if end - start <= size:
        return [(start, end)]
    if level == len(_CUTS):
        return _cut_between_characters(start, end, size, clusters)
    borders = [start, *(clusters.ceil(found.end()) for found in _CUTS[level].finditer(text, start, end)), end]
    pieces: list[tuple[int, int]] = []
    for a, b in itertools.pairwise(borders):
        if a < b:
            pieces += _cut(text, a, b, size, clusters, level + 1)
    merged: list[tuple[int, int]] = []
    for a, b in pieces:
        if merged and b - merged[-1][0] <= size:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    return merged


def _cut_between_characters(start: int, end: int, size: int, clusters: Clusters) -> list[tuple[int, int]]:
    pieces = []
    while end - start > size:
        stop = clusters.floor(start + size)
        stop = clusters.ceil(start + size) if stop <= start else stop
        pieces.append((start, min(stop, end)))
        start = stop
    if start < end:
        pieces.append((start, end))
    return pieces
