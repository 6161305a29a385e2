"""Code: functions and other statements at one level are units; the line above an indented block speaks for it."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from .sentences import strip
from .units import Unit

_KEYWORD = regex.compile(r"\s*+(?:(?:async )?def \w|class \w|return\b|import \w|from [\w.]+ import\b|@\w|[)}\]])")
_STATEMENT = regex.compile(
    r"""\s*+(?:
        import\ [{*"'] | (?:export\ |public\ |private\ |protected\ |static\ |pub\ )*+
          (?:function|func|fn|struct|impl|enum|interface|void)\b
        | (?:var|let|const|int|float|double|char|bool|String|auto)\ \w++\ =
        | \#include\b | package\ [\w.]+;? | using\ \w
        | [\w.\[\]"']++\ [-+*/|&]?=\ \S | [\w.]++\([^()]*+\)[;,]?\s*+$
        | //|/\*|\*/
    )""",
    regex.VERBOSE,
)
_OPENING = regex.compile(r"\s*+(?:if|for|while|elif|else|try|except|switch|match|with|case)\b")
_SAMPLE = 1000  # lines that decide what all are
_CLOSES = regex.compile(r"\s*(?:[)}\]]|end\b|else\b|elif\b|except\b|finally\b|catch\b|case\b|default\b)")


def looks_like_code(lines: Sequence[str]) -> bool:
    """Whether most lines are statements of a programming language."""
    filled = [line for line in lines[:_SAMPLE] if line.strip()]
    return len(filled) >= 2 and sum(map(_is_statement, filled)) >= 0.6 * len(filled)


def is_surely_code(lines: Sequence[str]) -> bool:
    """Whether keywords and brackets tell code from settings, which have keys and values too."""
    filled = [line for line in lines[:_SAMPLE] if line.strip()]
    return looks_like_code(lines) and sum(map(_has_keyword, filled)) >= 0.3 * len(filled)


def _has_keyword(line: str) -> bool:
    return line.rstrip()[-1:] in (";", "{") or _KEYWORD.match(line) is not None


def _is_statement(line: str) -> bool:
    opens = line.rstrip()[-1:] == ":" and _OPENING.match(line) is not None
    return opens or _has_keyword(line) or _STATEMENT.match(line) is not None


def code_units(text: str, start: int, end: int, limit: int) -> list[Unit]:
    """Units of code, each at most `limit` characters where its statements allow.

    Args:
        text: The passage.
        start, end: The span of the code, without fences.
        limit: Characters; larger blocks are opened, and the line above them speaks for what they hold.
    """
    lines = []
    position = start
    for line in text[start:end].splitlines(keepends=True):
        lines.append((position, position + len(line)))
        position += len(line)
    return _units(text, lines, limit)


def _units(text: str, lines: Sequence[tuple[int, int]], limit: int) -> list[Unit]:
    units: list[Unit] = []
    for chunk in _chunks(text, lines):
        a, b = strip(text, chunk[0][0], chunk[-1][1])
        head = _head(text, chunk)
        if b - a <= limit or head is None:
            units.append(Unit(a, b))
            continue
        x, y = strip(text, chunk[0][0], chunk[head - 1][1])
        units.append(Unit(x, y, section_end=b))
        units += _units(text, chunk[head:], limit)
    return units


def _chunks(text: str, lines: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group lines: a blank line, or a statement after an indented block, begins a new chunk at the outermost level."""
    filled = [_indent(text, line) for line in lines if text[line[0] : line[1]].strip()]
    if not filled:
        return []
    level = min(filled)
    chunks: list[list[tuple[int, int]]] = []
    blank, deep = True, False
    for line in lines:
        shown = text[line[0] : line[1]]
        if not shown.strip():
            blank = True
            continue
        outer = _indent(text, line) == level
        if not chunks or (outer and (blank or deep) and not _CLOSES.match(shown)):
            chunks.append([])
        chunks[-1].append(line)
        blank, deep = False, not outer
    return chunks


def _head(text: str, chunk: Sequence[tuple[int, int]]) -> int | None:
    """Number of lines above the chunk's indented block; None if there is none."""
    level = _indent(text, chunk[0])
    for index, line in enumerate(chunk):
        if _indent(text, line) > level:
            return index or None
    return None


def _indent(text: str, line: tuple[int, int]) -> int:
    return strip(text, *line)[0] - line[0]
