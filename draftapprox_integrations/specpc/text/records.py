"""Lines that are records: rows of tables, key and value, log lines, turns of a transcript.

Text may also be wrapped at some width, so a line break alone means nothing. Lines are records if they share a
delimiter or a label, or if the breaks between them were not needed to keep within the width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import regex

from .lines import Line, sample_of
from .sentences import split_sentences, strip
from .units import Unit

Kind = Literal["rows", "labelled", "lines"]

LINES_AT_LEAST = 3
_SHARE = 0.8  # of the lines must be alike
_LABELLED_SHARE = 0.6  # of the lines must have a label
_NARROW = 60  # characters: prose is wrapped at more
_WHOLE_LINE = 240  # characters: a longer labelled line is split into sentences
_LONG_CELL = 40  # characters: no name of a column
_QUOTED = regex.compile(r'"(?:[^"\n]|"")*+"')
_SEPARATORS = {
    "\t": regex.compile(r"\t"),
    "|": regex.compile(r"\|"),
    ";": regex.compile(r";"),
    ",": regex.compile(r","),
    "  ": regex.compile(r"(?<=\S)[ \t]{2,}+(?=\S)"),
}
_RULE = regex.compile(r"[\s|:+=-]*-[\s|:+=-]*")
_STAMP = r"[\[(<]?\d[\d:.,/TZ+-]*+(?:[ ]\d[\d:.,/TZ+-]*+)*+[\])>]?"
_LABEL = regex.compile(
    rf"""\s*+(?:
        {{.*}}[,\s]*                                    # a line of JSON
        | \[[^\]\n]{{1,40}}\]                           # [section], [12:00]
        | (?:{_STAMP}\s++)?[^\s:=][^:=\n]{{0,40}}[:=](?:\s|[^/:\s])   # key: value, key=value, not https://
        | [^\s:=][^:=\n]{{0,40}}:\s*$                   # a key whose value is on the next lines
        | [\[(<]?\d[\d:./T-]{{3,}}\d                    # a date or a time
        | (?:DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|FATAL|CRITICAL|TRACE)\b
        | [\#;]                                         # a comment
    )""",
    regex.VERBOSE,
)
# A question with its answer is one record.
_QUESTION = regex.compile(
    r"\W{0,4}(?:Q|Question|Frage|Pregunta|\u0412\u043e\u043f\u0440\u043e\u0441|\u95ee|\u554f)\s?\d{0,4}\W{0,3}[:.)\uff1a]"
)
_ANSWER = regex.compile(
    r"\W{0,4}(?:A|Answer|Antwort|R|Respuesta|\u041e\u0442\u0432\u0435\u0442|\u7b54)\s?\d{0,4}\W{0,3}[:.)\uff1a]"
)
_SECTION = regex.compile(r"\s*\[[^\]\n]{1,80}\]\s*$")
_OPENING = (":", "{", "(", "[")


def kind_of_lines(lines: Sequence[str]) -> Kind | None:
    """What some lines are; None for wrapped prose."""
    filled = sample_of(lines)
    if len(filled) > 1 and _QUESTION.match(filled[0]) and _ANSWER.match(filled[1]):
        return "labelled"
    if len(filled) < LINES_AT_LEAST:
        return None
    if separator_of(filled) is not None:
        return "rows"
    if sum(_LABEL.match(line) is not None for line in filled) >= _LABELLED_SHARE * len(filled):
        return "labelled"
    return "lines" if _breaks_are_meant(filled) else None


def separator_of(lines: Sequence[str]) -> str | None:
    """The character between the cells of rows, or two spaces for aligned columns; None if lines are no rows."""
    bare = [_QUOTED.sub("", line.strip()) for line in sample_of(lines)]
    for separator, pattern in _SEPARATORS.items():
        counts = Counter(len(pattern.findall(line)) for line in bare)
        count, lines_alike = counts.most_common(1)[0]
        if count == 0 or lines_alike < _SHARE * len(bare):
            continue
        spaced = sum(", " in line for line in bare)
        if separator == "," and spaced > 0.2 * len(bare):  # commas of prose are followed by a space
            longest = sorted(max(map(len, line.split(","))) for line in bare)[len(bare) // 2]
            if count < 2 or longest > 25 or len(bare) <= LINES_AT_LEAST:
                continue
        return separator
    return None


def row_units(text: str, lines: Sequence[Line]) -> list[Unit]:
    """Rows of a table: each is a unit; the header, with the rule under it, speaks for all others.

    Args:
        text: The passage.
        lines: Its lines.
    """
    shown = [text[line.start : line.end] for line in lines]
    separator = separator_of(shown) or "|"
    headers = 2 if len(shown) > 1 and _RULE.fullmatch(shown[1]) else 0
    if not headers and len(shown) >= LINES_AT_LEAST and _is_header(shown, _SEPARATORS[separator]):
        headers = 1
    units = []
    if headers:
        start, end = strip(text, lines[0].start, lines[headers - 1].end)
        units.append(Unit(start, end, section_end=lines[-1].end))
    return units + [Unit(*strip(text, line.start, line.end)) for line in lines[headers:]]


def labelled_units(text: str, lines: Sequence[Line]) -> list[Unit]:
    """Lines with labels: each is a unit; a key speaks for the deeper lines below it, [section] up to the next one."""
    units: list[Unit] = []
    for index, line in enumerate(lines):
        shown = text[line.start : line.end]
        a, b = strip(text, line.start, line.end)
        following = lines[index + 1] if index + 1 < len(lines) else None
        if index == 0 and following and not _LABEL.match(shown) and _LABEL.match(text[following.start : following.end]):
            units.append(Unit(a, b, section_end=lines[-1].end))  # "Opening hours"
        elif _SECTION.match(shown):
            units.append(Unit(a, b, section_end=len(text), is_title=True))
        elif following and shown.rstrip().endswith(_OPENING) and following.indent > line.indent:
            last = index + 1
            while last + 1 < len(lines) and lines[last + 1].indent > line.indent:
                last += 1
            units.append(Unit(a, b, section_end=lines[last].end))
        elif index and _ANSWER.match(shown) and _QUESTION.match(text, units[-1].start):
            units[-1] = Unit(units[-1].start, b)
        elif line.indent and units and units[-1].section_end is None and not _LABEL.match(shown):
            units[-1] = Unit(units[-1].start, b)  # goes on from the line before
        elif b - a > _WHOLE_LINE:
            units += [Unit(*span) for span in split_sentences(text, a, b)]
        else:
            units.append(Unit(a, b))
    return units


def _is_header(lines: Sequence[str], separator: regex.Pattern[str]) -> bool:
    """Whether the first line names columns: short distinct names without digits, not found again below."""
    cells = [cell.strip().strip('"') for cell in separator.split(lines[0].strip().strip("|"))]
    named = [cell for cell in cells if cell]
    if len(named) < len(cells) - 1 or len({cell.lower() for cell in named}) < len(named):
        return False
    if any(len(cell) > _LONG_CELL or any(letter.isdigit() for letter in cell) for cell in named):
        return False
    below = Counter(
        cell.strip().strip('"') for line in sample_of(lines)[1:] for cell in separator.split(line.strip().strip("|"))
    )
    return not any(below[cell] for cell in named)


def _breaks_are_meant(lines: Sequence[str]) -> bool:
    """Whether the lines were not broken for their width: the next line's first word would still have fitted."""
    width = max(len(line.rstrip()) for line in lines)
    meant = fresh = 0
    for before, after in itertools.pairwise(lines):
        word = after.split(maxsplit=1)[0]
        meant += len(before.rstrip()) + 1 + len(word) <= width
        fresh += not word[0].islower()
    breaks = len(lines) - 1
    return (meant >= 0.6 * breaks or width <= _NARROW) and fresh >= _SHARE * breaks
