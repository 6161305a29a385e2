"""Cut a document into passages of whole units: sentences, rows, records, items.

A passage that starts inside a table begins with the table's header, which would stand in another passage otherwise. So
does one inside nested data, with the keys that lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..specpc.text.blocks import split_units
from ..specpc.text.graphemes import Clusters
from ..specpc.text.segmentation import Sentence, headers_of
from ..specpc.text.units import Unit, cut

Layout = Literal["text", "lines", "table"]


def split(text: str, max_characters: int, layout: Layout = "text") -> list[str]:
    """Split text into runs of whole units of about `max_characters`; keep headings with the text that follows.

    Args:
        text: The text.
        max_characters: Approximate most characters of a passage, the repeated header included.
        layout: "text" finds out what the units are. "lines": every line is one (JSON Lines). "table": every row is one,
            and the first is the header (CSV).

    Returns:
        Passages in reading order. Each is a piece of the text, after the headers that speak for its first unit.
    """
    units = split_units(text) if layout == "text" else _lines(text, max_characters, header=layout == "table")
    spoken = _headers(text, units, max_characters // 2)
    pieces: list[str] = []
    first = 0

    def close(stop: int) -> None:
        pieces.append(spoken[first] + text[units[first].start : units[stop - 1].end])

    for index in range(1, len(units)):
        size = len(spoken[first]) + units[index].end - units[first].start
        before = size - (units[index].end - units[index].start)
        late_heading = units[index].is_title and before > max_characters // 2
        if first < index and (size > max_characters or late_heading):
            stop = index
            while stop - 1 > first and units[stop - 1].section_end is not None:  # a header goes with what follows it
                stop -= 1
            close(stop)
            first = stop
    if units:
        close(len(units))
    return pieces


def _headers(text: str, units: Sequence[Unit], most: int) -> list[str]:
    """For each unit the headers to repeat where a passage starts with it; "" where they take more than `most`.

    Headings (titles of sections) are not repeated: the passage has its document's title.
    """
    as_sentences = [Sentence(0, unit.start, unit.end, "", unit.section_end, unit.is_title) for unit in units]
    found = []
    for indices in headers_of(as_sentences):
        headers = [units[index] for index in reversed(indices) if not units[index].is_title]
        repeated = "".join(f"{text[header.start : header.end]}\n" for header in headers)
        found.append(repeated if len(repeated) <= most else "")
    return found


def _lines(text: str, max_characters: int, *, header: bool) -> list[Unit]:
    """Lines that are not blank; with a header, rows of a table, whose quoted cells may span lines."""
    rows: list[Unit] = []
    clusters = Clusters(text)
    start = position = quotes = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        quotes += line.count('"')
        if header and quotes % 2 and position - start <= max_characters:
            continue  # inside a cell; a longer one is a quote that is never closed
        row = text[start:position].rstrip()
        if row:
            speaks = len(text) if header and not rows else None
            rows += cut(text, Unit(start, start + len(row), speaks), max_characters, clusters)
        start, quotes = position, 0
    if text[start:].strip():
        rows += cut(text, Unit(start, len(text.rstrip())), max_characters, clusters)
    return rows
