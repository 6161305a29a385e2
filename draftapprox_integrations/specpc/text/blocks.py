"""Split a text into its blocks and their units: prose, headings, list items, tables, records, code, JSON, HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from .code import code_units, is_surely_code, looks_like_code
from .graphemes import Clusters
from .lines import filled_lines
from .markup import html_units, json_units, looks_like_html, looks_like_json
from .records import kind_of_lines, labelled_units, row_units
from .sentences import split_sentences, strip
from .units import Unit, cut

MAX_UNIT_CHARACTERS = 600

_FEW_BLOCKS = 64  # of one line each

# A line that starts a paragraph: heading, list item, quote, rule.
_OWN_LINE = regex.compile(r" {0,3}+(?:#{1,6}\s)|\s*+(?:[-*+\u2022]\s|\d{1,3}[.)]\s|>|(?:[-=*_]\s*+){3,}+$)")
_FENCE = regex.compile(r"^[ \t]*+(```++|~~~++)", regex.MULTILINE)
# Lines and paragraphs of these kinds are looked at together: a table, a log, code with blank lines in it.
_Kind = Literal["prose", "heading", "item", "rows", "fence"]


@dataclass(frozen=True)
class _Block:
    kind: _Kind
    start: int
    end: int


def split_units(text: str, max_characters: int = MAX_UNIT_CHARACTERS) -> list[Unit]:
    """Units of a text in reading order; between them is only white space.

    Args:
        text: The text.
        max_characters: Most characters of a unit.
    """
    clusters = Clusters(text)
    units: list[Unit] = []
    for unit in _title_sections(_units(text, max_characters), len(text)):
        before = units[-1].end if units else 0
        start, end = strip(text, max(unit.start, before), unit.end)
        start, end = max(clusters.floor(start), before), clusters.ceil(end)
        if start < end:
            units += cut(text, Unit(start, end, unit.section_end, unit.is_title), max_characters, clusters)
    return units


def _title_sections(units: Sequence[Unit], length: int) -> Iterator[Unit]:
    """Let the section of each title end at the next title."""
    following = length
    ended = []
    for unit in reversed(units):
        if unit.is_title:
            unit = Unit(unit.start, unit.end, following, True)
            following = unit.start
        ended.append(unit)
    return reversed(ended)


def _units(text: str, limit: int) -> list[Unit]:
    if looks_like_json(text, 0, len(text)):
        return json_units(text, 0, len(text), limit)
    if looks_like_html(text, 0, len(text)):
        return html_units(text, 0, len(text))
    lines = text.splitlines()
    if is_surely_code(lines) and _FENCE.search(text) is None:
        return code_units(text, 0, len(text), limit)
    units: list[Unit] = []
    blocks = _blocks(text)
    index = 0
    while index < len(blocks):
        stop, together = _group(text, blocks, index)
        for first, last in [(index, stop - 1)] if together else [(i, i) for i in range(index, stop)]:
            units += _block_units(text, blocks[first].kind, blocks[first].start, blocks[last].end, limit)
        index = stop
    return units


def _block_units(text: str, kind: _Kind, start: int, end: int, limit: int) -> list[Unit]:
    if kind == "heading":
        return [Unit(*strip(text, start, end), section_end=end, is_title=True)]
    if kind == "rows":
        return row_units(text, filled_lines(text, start, end))
    if kind == "fence":
        return _fenced_units(text, start, end, limit)
    if kind == "prose":
        if looks_like_json(text, start, end):
            return json_units(text, start, end, limit)
        lines = filled_lines(text, start, end)
        shown = [text[line.start : line.end] for line in lines]
        found = kind_of_lines(shown)
        if found == "rows":
            return row_units(text, lines)
        if found == "labelled":
            return labelled_units(text, lines)
        if looks_like_code(shown):
            return code_units(text, start, end, limit)
        if found == "lines":
            return [Unit(*span) for line in lines for span in split_sentences(text, line.start, line.end)]
    return [Unit(*span) for span in split_sentences(text, start, end)]


def _group(text: str, blocks: Sequence[_Block], first: int) -> tuple[int, bool]:
    """The blocks that are looked at next: up to which one, and whether together.

    Prose blocks belong together where they are code, or lines of records with blank ones between.
    """
    stop = first + 1
    if blocks[first].kind != "prose":
        return stop, True
    code = looks_like_code(_shown(text, blocks[first]))
    single = not code and _is_one_line(text, blocks[first])
    while stop < len(blocks) and blocks[stop].kind == "prose":
        following = blocks[stop]
        if code:
            joins = text[following.start] in " \t" or looks_like_code(_shown(text, following))
        else:
            joins = single and _is_one_line(text, following)
        if not joins:
            break
        stop += 1
    if single and stop > first + 1:  # paragraphs of one line each are records only if they look like some
        lines = [text[block.start : block.end] for block in blocks[first:stop]]
        if kind_of_lines(lines) not in ("rows", "labelled"):
            # The last ones may still be. Looking from every one of many would take quadratic time.
            return first + (1 if len(lines) <= _FEW_BLOCKS else len(lines) // 2), False
    return stop, True


def _is_one_line(text: str, block: _Block) -> bool:
    return "\n" not in text[block.start : block.end].strip()


def _shown(text: str, block: _Block) -> list[str]:
    return text[block.start : block.end].splitlines()


def _fenced_units(text: str, start: int, end: int, limit: int) -> list[Unit]:
    """Units of a block of code; its fences go with the first and the last, or speak for all if there are several."""
    lines = filled_lines(text, start, end)
    opening, last = lines[0], lines[-1]
    closed = last != opening and _FENCE.fullmatch(text[last.start : last.end].rstrip()) is not None
    inner_end = last.start if closed else end
    whole = Unit(*strip(text, start, end))
    units = code_units(text, opening.end, inner_end, limit)
    if len(units) < 2:
        return [whole]
    units[-1] = Unit(units[-1].start, whole.end)
    return [Unit(*strip(text, opening.start, opening.end), section_end=whole.end), *units]


def _blocks(text: str) -> list[_Block]:
    """Paragraphs; headings, list items and the rows of a table by themselves."""
    blocks: list[_Block] = []
    start: int | None = None
    kind: _Kind = "prose"
    fence: str | None = None  # the closing fence, inside a block of code
    position = 0

    def close(end: int) -> None:
        nonlocal start
        if start is not None:
            blocks.append(_Block(kind, start, end))
        start = None

    for line in text.splitlines(keepends=True):
        stop = position + len(line)
        opened = _FENCE.match(line)
        if fence is not None:
            if line.strip() == fence:
                close(stop)
                fence = None
        elif opened is not None:
            close(position)
            start, kind, fence = position, "fence", opened[1]
        else:
            shown = line.strip()
            row = shown.startswith("|")
            if start is not None and (not shown or _OWN_LINE.match(line) or row != (kind == "rows")):
                close(position)
            if shown and start is None:
                start = position
                kind = "rows" if row else "heading" if shown.startswith("#") and _OWN_LINE.match(line) else "prose"
                kind = "item" if kind == "prose" and _OWN_LINE.match(line) else kind
            if kind == "heading":
                close(stop)
        position = stop
    close(position)
    return blocks
