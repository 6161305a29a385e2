"""The lines of a text, for what tells records and code from prose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SAMPLE = 1000


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        start, end: Character span [start, end), line break included.
        indent: Characters of white space before its text.
    """

    start: int
    end: int
    indent: int


def filled_lines(text: str, start: int, end: int) -> list[Line]:
    """The lines of text[start:end] that are not blank."""
    lines = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            lines.append(Line(start, start + len(line), len(line) - len(line.lstrip())))
        start += len(line)
    return lines


def sample_of(lines: Sequence[str]) -> list[str]:
    """Those of the first lines that are not blank: they decide what all are."""
    return [line for line in lines[:_SAMPLE] if line.strip()]
