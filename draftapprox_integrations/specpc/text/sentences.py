"""Where sentences end, in the languages that people retrieve.

A full stop ends a sentence unless it belongs to an abbreviation, an initial or an ordinal number. docs/LOG.md compares
the rules with libraries.
"""

from __future__ import annotations

import itertools

import regex

from ...results import Span
from .abbreviations import (
    ABBREVIATIONS,
    BEFORE_NUMBER,
    BEFORE_ORDINAL,
    BEGINS_SENTENCE,
    MAY_END,
    MONTHS,
    UNITS,
)

# Possessive, and never begun inside a run: each character is looked at once, whatever the text.
_STOPS = r".!?\u2026\u061f\u06d4\u0589\u17d4\u17d5"  # needs white space behind it
_SURE_STOPS = r"\u3002\uff01\uff1f\uff61\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u0f0d\u0f0e"  # needs none
_CLOSERS = r"\"'\u201d\u2019\u201c\u00bb\u00ab\u203a\u2039)\]\u300d\u300f\uff09\u3011\u300b\u3009\u3015\uff3d\uff5d"
_FRENCH_CLOSER = r"[ \u00a0\u202f][\u00bb\u203a](?=[\s,;]|\Z)"
_STOP = regex.compile(
    rf"(?<![{_STOPS}{_SURE_STOPS}])(?:[{_STOPS}]++(?P<sure>[{_SURE_STOPS}{_STOPS}]*+)|(?P<sure>[{_SURE_STOPS}{_STOPS}]++))"
    rf"(?P<closers>(?:[{_CLOSERS}]|{_FRENCH_CLOSER})*+)(?=(?P<space>\s|\Z)?)"
)
_NEXT_WORD = regex.compile(r"[\s\p{Ps}\p{Pi}\"']*+(?P<word>[\p{L}\p{M}]*+)")
_WORD_BEFORE = regex.compile(
    r"(?:(?<=^|[^\p{L}\p{M}\p{Nd}.])[\p{L}\p{M}]{1,3}\.\s?)?[\p{L}\p{M}\p{Nd}]+(?:\.[\p{L}\p{M}]+)*$"
)
_LOOK_BACK = 24  # characters: longer than any abbreviation with the word before it

_ROMAN = regex.compile(r"[IVXLC]{2,}")
_INITIAL = regex.compile(r"\p{Lu}\p{M}*")


def sentence_ends(text: str, start: int, end: int) -> list[int]:
    """Positions behind the sentences that end within text[start:end], closing marks included; linear in the length."""
    ends = []
    piece = start
    for stop in _STOP.finditer(text, start, end):
        at_end = stop.end() >= end
        if not stop["sure"] and stop["space"] is None and not at_end:
            continue  # 3.5, example.org
        if _is_end(text, piece, stop, end):
            ends.append(stop.end())
            piece = stop.end()
    return ends


def _is_end(text: str, start: int, stop: regex.Match[str], limit: int) -> bool:
    following = _NEXT_WORD.match(text, stop.end(), limit)
    word = following["word"] if following is not None else ""
    if word[:1].islower():  # "... e.g. the next word" goes on
        return False
    if text[stop.start() : stop.end()] != ".":
        return True
    before = _WORD_BEFORE.search(text, max(start, stop.start() - _LOOK_BACK), stop.start())
    return before is None or not _goes_on(text, start, before, word)


def _goes_on(text: str, start: int, before: regex.Match[str], following: str) -> bool:
    """Whether a full stop after `before` is part of it, and `following` belongs to the same sentence."""
    words = before[0].split()
    last = words[-1]
    if last in UNITS and regex.search(r"\p{Nd}\s?$", text, pos=start, endpos=before.end() - len(last)):
        return not following[:1].isupper()
    if last in MAY_END and following in BEGINS_SENTENCE:
        return False
    if last in ABBREVIATIONS or ("." in last and last.rpartition(".")[2] in ABBREVIATIONS):
        return True
    if last in BEFORE_NUMBER:
        return following == ""
    if _INITIAL.fullmatch(last):  # J. R. Jones
        return True
    if len(last) == 1 and last.isalpha() and len(words) > 1:  # u. a. Bücher
        return True
    if last.isdecimal():
        return bool(following) and _is_ordinal(text, start, before.end() - len(last), before.end(), following)
    return bool(_ROMAN.fullmatch(last)) and following in {"König", "Kaiser", "Papst"}


def _is_ordinal(text: str, start: int, begin: int, end: int, following: str) -> bool:
    """Whether the number text[begin:end] with its full stop is an ordinal: 5. Mai, 1932. Május 5, der 2. Weltkrieg."""
    if end - begin == 4:
        return (
            following.lower() in MONTHS and text[end + 1 : end + 24].lstrip()[len(following) :].strip()[:1].isdecimal()
        )
    if end - begin > 3:
        return False
    if following.lower() in MONTHS:
        return True
    earlier = text[max(start, begin - 10) : begin].split()
    return following not in BEGINS_SENTENCE and bool(earlier) and earlier[-1].lower() in BEFORE_ORDINAL


def split_sentences(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """Spans of the sentences of text[start:end], white space between them included in neither."""
    end = len(text) if end is None else end
    borders = [start, *sentence_ends(text, start, end), end]
    return [span for a, b in itertools.pairwise(borders) if (span := strip(text, a, b))[0] < span[1]]


def strip(text: str, start: int, end: int) -> Span:
    """`start` and `end` moved inwards over white space."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - len(piece) + len(piece.rstrip()))
