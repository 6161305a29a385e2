"""Split passages into the units that are kept or dropped whole: sentences, words, or the draft's tokens.

The units of a passage are character spans in reading order that do not overlap; between them is only white space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...config import Granularity
from ...results import Span

MAX_UNIT_CHARACTERS = 600

# Scripts written without spaces: every character counts as a word.
_UNSPACED = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# A line that starts a paragraph: heading, list item, table row, quote, rule.
_OWN_LINE = re.compile(r"\s*(?:#{1,6}\s|[-*+\u2022]\s|\d{1,3}[.)]\s|\||>|(?:[-=*_]\s*){3,}$)")
_FENCE = re.compile(r"\s*(```+|~~~+)")
_BREAK = re.compile(
    r"""
    [.!?\u2026\u0964\u061f\u06d4]+["'\u201d\u2019)\]]*(?=\s)   # a full stop and closing marks, then white space
    | [\u3002\uff01\uff1f\uff61]+["'\u201d\u2019\u300d\u300f)\]]*   # CJK full stops need no space
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:[A-Z]|(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|Lt|Col|Gen|Capt|Sgt|Rev|Hon|Gov|Sen|Rep|Inc|Ltd|Co|Corp|"
    r"vs|cf|al|approx|ca|c|no|No|Nos|vol|Vol|pp|p|ch|Ch|sec|Sec|fig|Fig|Figs|eq|Eq|ed|eds|est|dept|Dept|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|e\.g|i\.e|U\.S|U\.K|U\.N|a\.m|p\.m|etc|Ph\.D|B\.C|A\.D))\.$"
)


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
    """

    passage: int
    start: int
    end: int
    text: str = field(compare=False)


def segment(
    passages: Sequence[str], granularity: Granularity = "sentence", token_spans: Sequence[Sequence[Span]] | None = None
) -> list[list[Sentence]]:
    """Split passages into units.

    Args:
        passages: Texts.
        granularity: "sentence", "word" or "token".
        token_spans: Per passage the character spans of its tokens; needed for "token" only.

    Returns:
        Per passage its units in reading order; none for blank text.
    """
    units = []
    for index, text in enumerate(passages):
        spans = _spans_of(text, granularity, token_spans[index] if token_spans is not None else ())
        units.append([Sentence(index, start, end, text[start:end]) for start, end in spans])
    return units


def _spans_of(text: str, granularity: Granularity, tokens: Sequence[Span]) -> list[Span]:
    if granularity == "token":
        return merge_tokens(text, tokens)
    if granularity == "word":
        return words(text)
    return sentences(text)


def words(text: str) -> list[Span]:
    """Spans of words: runs without white space; single characters of scripts written without spaces."""
    return [match.span() for match in _WORD.finditer(text)]


def merge_tokens(text: str, tokens: Sequence[Span]) -> list[Span]:
    """Spans of tokens without white space; tokens that share a character (bytes of one emoji) are merged."""
    units: list[Span] = []
    for start, end in tokens:
        start, end = _strip(text, start, end)
        if start == end:
            continue
        if units and start < units[-1][1]:
            units[-1] = (units[-1][0], max(end, units[-1][1]))
        else:
            units.append((start, end))
    return units


def sentences(text: str) -> list[Span]:
    """Spans of sentences, headings, list items, table rows and blocks of code; very long ones are cut between words."""
    units: list[Span] = []
    for start, end in _paragraphs(text):
        piece = start
        if _FENCE.match(text, start):  # a block of code is one unit
            _append(units, text, start, end)
            continue
        for match in _BREAK.finditer(text, start, end):
            if _is_end(text, piece, match.end(), end):
                _append(units, text, piece, match.end())
                piece = match.end()
        _append(units, text, piece, end)
    return units


def _is_end(text: str, start: int, stop: int, limit: int) -> bool:
    if text[stop - 1] == "." and _ABBREVIATION.search(text, max(start, stop - 12), stop):
        return False
    following = text[stop:limit].lstrip()[:1]
    return not following.islower()  # "... e.g. the next word" goes on


def _paragraphs(text: str) -> list[Span]:
    """Spans of paragraphs; a heading, list item or table row is a paragraph of its own."""
    runs: list[Span] = []
    start: int | None = None
    position = 0
    fence: str | None = None  # the closing fence, inside a block of code
    for line in text.splitlines(keepends=True):
        opened = _FENCE.match(line)
        if fence is not None or opened is not None:
            if fence is None and opened is not None:
                if start is not None:
                    runs.append((start, position))
                start, fence = position, opened[1]
            elif line.strip() == fence:
                assert start is not None
                runs.append((start, position + len(line)))
                start = fence = None
            position += len(line)
            continue
        blank, alone = not line.strip(), bool(_OWN_LINE.match(line))
        if (blank or alone) and start is not None:
            runs.append((start, position))
            start = None
        if not blank:
            start = position if start is None else start
            if alone and line.lstrip().startswith(("#", "|")):
                runs.append((start, position + len(line)))
                start = None  # unlike a list item, it never continues on the next line
        position += len(line)
    if start is not None:
        runs.append((start, position))
    return runs


def _append(units: list[Span], text: str, start: int, end: int) -> None:
    start, end = _strip(text, start, end)
    while end - start > MAX_UNIT_CHARACTERS:
        cut = start + MAX_UNIT_CHARACTERS
        spaces = [match.start() for match in re.finditer(r"\s", text[start + MAX_UNIT_CHARACTERS // 2 : cut])]
        if spaces:
            cut = start + MAX_UNIT_CHARACTERS // 2 + spaces[-1]
        units.append(_strip(text, start, cut))
        start, _ = _strip(text, cut, end)
    if start < end:
        units.append((start, end))


def _strip(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


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
