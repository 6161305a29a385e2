"""Split a text into its blocks and their units: prose, headings, list items, tables, records, code, JSON, HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from .code import code_units, is_surely_code, looks_like_code
from .graphemes import Clusters
from .markup import html_units, json_units, looks_like_html, looks_like_json
from .records import kind_of_lines, labelled_units, row_units
from .sentences import split_sentences, strip
from .units import Unit, cut

MAX_UNIT_CHARACTERS = 600

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
        block = blocks[index]
        last = index
        if block.kind == "prose":
            last = _last_of_group(text, blocks, index)
        units += _block_units(text, block.kind, block.start, blocks[last].end, limit)
        index = last + 1
    return units


def _block_units(text: str, kind: _Kind, start: int, end: int, limit: int) -> list[Unit]:
    if kind == "heading":
        return [Unit(*strip(text, start, end), section_end=end, is_title=True)]
    if kind == "rows":
        return row_units(text, _lines(text, start, end))
    if kind == "fence":
        return _fenced_units(text, start, end, limit)
    if kind == "prose":
        if looks_like_json(text, start, end):
            return json_units(text, start, end, limit)
        lines = _lines(text, start, end)
        shown = [text[a:b] for a, b in lines]
        found = kind_of_lines(shown)
        if found == "rows":
            return row_units(text, lines)
        if found == "labelled":
            return labelled_units(text, lines)
        if looks_like_code(shown):
            return code_units(text, start, end, limit)
        if found == "lines":
            return [Unit(*span) for a, b in lines for span in split_sentences(text, a, b)]
    return [Unit(*span) for span in split_sentences(text, start, end)]


def _last_of_group(text: str, blocks: Sequence[_Block], first: int) -> int:
    """Index of the last of the prose blocks that belong together: lines with blank ones between, or code."""
    last = first
    code = looks_like_code(_shown(text, blocks[first]))
    single = "\n" not in text[blocks[first].start : blocks[first].end].strip()
    while last + 1 < len(blocks) and blocks[last + 1].kind == "prose":
        following = blocks[last + 1]
        indented = text[following.start : following.end][:1] in " \t"
        one_line = single and "\n" not in text[following.start : following.end].strip()
        if (code and (indented or looks_like_code(_shown(text, following)))) or (one_line and not code):
            last += 1
        else:
            break
    if single and not code and last > first:  # paragraphs of one line each are records only if they look like some
        lines = [text[block.start : block.end] for block in blocks[first : last + 1]]
        if kind_of_lines(lines) not in ("rows", "labelled"):
            return first
    return last


def _shown(text: str, block: _Block) -> list[str]:
    return text[block.start : block.end].splitlines()


def _fenced_units(text: str, start: int, end: int, limit: int) -> list[Unit]:
    """Units of a block of code; its fences go with the first and the last, or speak for all if there are several."""
    lines = _lines(text, start, end)
    closed = len(lines) > 1 and _FENCE.fullmatch(text[slice(*lines[-1])].rstrip()) is not None
    inner_end = lines[-1][0] if closed else end
    whole = Unit(*strip(text, start, end))
    units = code_units(text, lines[0][1], inner_end, limit)
    if len(units) < 2:
        return [whole]
    units[-1] = Unit(units[-1].start, whole.end)
    return [Unit(*strip(text, *lines[0]), section_end=whole.end), *units]


def _lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of the lines of text[start:end] that are not blank."""
    lines = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            lines.append((start, start + len(line)))
        start += len(line)
    return lines


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
