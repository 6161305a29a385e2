"""Code: functions and other statements at one level are units; the line above an indented block speaks for it."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from .lines import Line, filled_lines, sample_of
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
_DEEPEST = 64  # blocks further inside are not opened
_CLOSES = regex.compile(r"\s*(?:[)}\]]|end\b|else\b|elif\b|except\b|finally\b|catch\b|case\b|default\b)")


def looks_like_code(lines: Sequence[str]) -> bool:
    """Whether most lines are statements of a programming language."""
    filled = sample_of(lines)
    return len(filled) >= 2 and sum(map(_is_statement, filled)) >= 0.6 * len(filled)


def is_surely_code(lines: Sequence[str]) -> bool:
    """Whether keywords and brackets tell code from settings, which have keys and values too."""
    filled = sample_of(lines)
    return sum(map(_has_keyword, filled)) >= 0.3 * len(filled) and looks_like_code(filled)


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
    return _units(text, filled_lines(text, start, end), limit, 0)


def _units(text: str, lines: Sequence[Line], limit: int, depth: int) -> list[Unit]:
    units: list[Unit] = []
    for chunk in _chunks(text, lines, outermost=depth == 0):
        a, b = strip(text, chunk[0].start, chunk[-1].end)
        head = next((index for index, line in enumerate(chunk) if line.indent > chunk[0].indent), None)
        if b - a <= limit or head is None or depth == _DEEPEST:
            units.append(Unit(a, b))
            continue
        units.append(Unit(*strip(text, chunk[0].start, chunk[head - 1].end), section_end=b))
        units += _units(text, chunk[head:], limit, depth + 1)
    return units


def _chunks(text: str, lines: Sequence[Line], *, outermost: bool) -> list[list[Line]]:
    """Group lines: a statement after an indented block begins a new chunk; outermost, one after a blank line, too."""
    level = min((line.indent for line in lines), default=0)
    chunks: list[list[Line]] = []
    for line in lines:
        if chunks and line.indent == level:
            before = chunks[-1][-1]
            apart = before.indent > level or (outermost and before.end < line.start)
            if apart and not _CLOSES.match(text, line.start, line.end):
                chunks.append([])
        elif not chunks:
            chunks.append([])
        chunks[-1].append(line)
    return chunks
