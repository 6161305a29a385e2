"""JSON and HTML, whole or cut off by a splitter: items are units, keys and header rows speak for what is below them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import regex

from .sentences import split_sentences, strip
from .units import Unit

_TOKEN = regex.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', regex.DOTALL)
_KEY = regex.compile(r'"[^"\n]{1,80}"\s{0,4}:')
_DEEPEST = 64  # brackets further inside are text
_BLOCK_TAG = regex.compile(
    r"<(?:li|tr|p|div|h[1-6]|dt|option|article|section|blockquote|pre|table|ul|ol|dl|thead|tbody|br|summary)\b[^<>]*+>",
    regex.IGNORECASE,
)
_NAME = regex.compile(r"<([A-Za-z][\w:.-]*+)[^<>]*+>")
_TAG = regex.compile(r"<[^<>]*+>")
_TABLE = regex.compile(r"</?table\b", regex.IGNORECASE)


def looks_like_json(text: str, start: int, end: int) -> bool:
    """Whether a text is JSON, or a part of it."""
    a, b = strip(text, start, end)
    if a == b:
        return False
    keys = sum(1 for _ in _KEY.finditer(text, a, b))
    if text[a] + text[b - 1] in ("{}", "[]"):
        return keys >= 1 or (text[a] == "[" and text.count(",", a, b) >= 3)
    brackets = text.count("{", a, b) + text.count("[", a, b)
    if "\n\n" in text[a:b]:  # prose, with JSON in it
        return False
    return keys >= 3 and brackets >= 1 and keys * 200 >= b - a


def looks_like_html(text: str, start: int, end: int) -> bool:
    """Whether a text has at least three tags that begin items, and one in 400 characters."""
    tags = sum(1 for _ in _item_tag(text, start, end).finditer(text, start, end))
    return tags >= 3 and tags * 400 >= end - start


def _item_tag(text: str, start: int, end: int) -> regex.Pattern[str]:
    """What begins an item: a tag of HTML's blocks; in other XML the outermost tag that is found three times."""
    if sum(1 for _ in _BLOCK_TAG.finditer(text, start, end)) >= 3 or not text[start:end].lstrip().startswith("<"):
        return _BLOCK_TAG
    counts = Counter(found[1] for found in _NAME.finditer(text, start, end))
    repeated = next((name for name, count in counts.items() if count >= 3), None)
    return _BLOCK_TAG if repeated is None else regex.compile(rf"<{regex.escape(repeated)}(?=[\s/>])[^<>]*+>")


@dataclass
class _Item:
    """A value of JSON between commas, with its key; `inside` is what its brackets hold."""

    start: int
    end: int = 0
    opened: int = 0
    inside: list[_Item] | None = None


def json_units(text: str, start: int, end: int, limit: int) -> list[Unit]:
    """Each object, or field of a larger one, is a unit; the key of a larger object speaks for its fields."""
    units: list[Unit] = []
    _emit(text, _parse(text, start, end), limit, units)
    if len(units) > 1 and not any(letter.isalnum() for letter in text[units[0].start : units[0].end]):
        units[:2] = [Unit(units[0].start, units[1].end, units[1].section_end)]
    return units


def _parse(text: str, start: int, end: int) -> list[_Item]:
    """Items of the outermost level. Brackets whose other half was cut off are completed."""
    if '"' in text[start:end]:  # cut off inside a string, quotes would be taken the wrong way round
        first = text.index('"', start, end)
        keys_now = _keys(text, start, end)
        if keys_now < _keys(text, first + 1, end):
            inner = _parse(text, first + 1, end)
            inner[0].start = start
            return inner
    stack: list[list[_Item]] = [[_Item(start)]]
    too_deep = cut_off = 0
    for token in _TOKEN.finditer(text, start, end):
        mark = token[0]
        items = stack[-1]
        if mark in "[{":
            if len(stack) > _DEEPEST:
                too_deep += 1
            elif items[-1].inside is None:
                items[-1].opened = token.end()
                items[-1].inside = [_Item(token.end())]
                stack.append(items[-1].inside)
            else:  # a second bracket in one item: the items before it had no comma between them
                items[-1].end = token.start()
                items.append(_Item(token.start(), opened=token.end(), inside=[_Item(token.end())]))
                stack.append(items[-1].inside or [])
        elif mark in "]}":
            if too_deep:
                too_deep -= 1
                continue
            items[-1].end = token.start()
            if len(stack) > 1:
                stack.pop()
            elif cut_off < _DEEPEST:  # its opening half was cut off
                cut_off += 1
                stack = [[_Item(start, opened=start, inside=items)]]
        elif mark == "," and not too_deep:
            items[-1].end = token.end()
            items.append(_Item(token.end()))
    for items in stack:
        items[-1].end = end
    return stack[0]


def _keys(text: str, start: int, end: int) -> int:
    return sum(text[token.end() : token.end() + 1] == ":" for token in _TOKEN.finditer(text, start, end))


def _emit(text: str, items: list[_Item], limit: int, units: list[Unit]) -> None:
    for index, item in enumerate(items):
        end = items[index + 1].start if index + 1 < len(items) else item.end
        a, b = strip(text, item.start, max(item.end, end))
        inside = [one for one in item.inside or [] if one.start < one.end]
        containers = sum(one.inside is not None for one in inside)
        if not inside or (b - a <= limit and containers < 2):
            _append(text, units, a, b)
            continue
        before = len(units)
        key = any(letter.isalnum() for letter in text[a : item.opened])
        if key:
            units.append(Unit(a, item.opened, section_end=b))
        _emit(text, inside, limit, units)
        if len(units) > before + key:
            first, last = units[before + key], units[-1]
            if not key:
                units[before] = Unit(a, first.end, first.section_end)
            units[-1] = Unit(units[-1].start, b, last.section_end)
        elif key:
            units[-1] = Unit(a, b)


def _append(text: str, units: list[Unit], a: int, b: int) -> None:
    """Add a value; punctuation alone goes to the unit before it."""
    if a < b and units and not any(letter.isalnum() for letter in text[a:b]):
        units[-1] = Unit(units[-1].start, b, units[-1].section_end)
    elif a < b:
        units.append(Unit(a, b))


def html_units(text: str, start: int, end: int) -> list[Unit]:
    """List items, table rows, sentences; a row of <th> speaks for its table, a heading for its section."""
    borders = [start, *(tag.start() for tag in _item_tag(text, start, end).finditer(text, start, end)), end]
    units: list[Unit] = []
    begin: int | None = None  # tags without text belong to what follows
    for a, b in itertools.pairwise(borders):
        begin = a if begin is None else begin
        if not _TAG.sub("", text[a:b]).strip():
            continue
        units += _block_units(text, a, begin, b, end)
        begin = None
    if begin is not None:
        x, y = strip(text, begin, end)
        if x < y and units:
            units[-1] = Unit(units[-1].start, y, units[-1].section_end, units[-1].is_title)
        elif x < y:
            units.append(Unit(x, y))
    return units


def _block_units(text: str, tag: int, start: int, end: int, limit: int) -> list[Unit]:
    name = text[tag + 1 : tag + 3].lower()
    x, y = strip(text, start, end)
    if regex.match("h[1-6]", name):
        return [Unit(x, y, section_end=limit, is_title=True)]
    if name == "tr":
        shown = text[tag:end].lower()
        closing = _TABLE.search(text, end, limit)
        if "<th" in shown and "<td" not in shown:
            return [Unit(x, y, section_end=closing.start() if closing else limit)]
        return [Unit(x, y)]
    return [Unit(*span) for span in split_sentences(text, x, y)]
