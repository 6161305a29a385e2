"""Short labels of passages for a terminal, different from each other where the passages are."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from .documents import Passage

_MARK = "\u2026"
_ROUNDS = 4  # texts may differ in several places


def labels(passages: Sequence[Passage], width: int) -> list[str]:
    """Return per passage its title, its number within the document and its file, in at most `width` columns.

    Long ones keep their start and end. Where these are the same, the places are shown, too, where they differ.
    """
    full = [_full(passage) for passage in passages]
    places: dict[str, list[int]] = {text: [] for text in full}
    for _ in range(_ROUNDS):
        short = {text: _shown(text, places[text], width) for text in places}
        groups: dict[str, list[str]] = {}
        for text, label in short.items():
            groups.setdefault(label, []).append(text)
        for group in groups.values():
            if len(group) > 1:
                for text in group:
                    places[text].append(_first_difference(group))
    return [short[text] for text in full]


def _full(passage: Passage) -> str:
    part = f" {passage.number}/{passage.of}" if passage.of > 1 else ""
    return " ".join(f"{passage.title}{part} ({passage.file})".split())


def _first_difference(texts: Sequence[str]) -> int:
    columns = zip(*texts, strict=False)
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), min(map(len, texts)))


def _shown(text: str, places: Sequence[int], width: int) -> str:
    """Shorten a text to its start, its end, and what stands at `places`."""
    if cell_len(text) <= width:
        return text
    share = width // (len(places) + 2)
    spans = [(0, len(_first(text, share)))]
    for place in sorted(places):
        start = max(place - 2, 0)
        spans.append((start, start + len(_first(text[start:], share - 1))))
    last = width - share * (len(places) + 1) - 1
    spans.append((len(text) - len(_first(text[::-1], last)), len(text)))
    shown, position = "", 0
    for start, end in spans:
        shown += _MARK * (start > position) + text[max(start, position) : end]
        position = max(position, end)
    return shown


def _first(text: str, width: int) -> str:
    """Return as much of the text's start as `width` columns hold."""
    end = used = 0
    for character in text:
        used += cell_len(character)
        if used > width:
            break
        end += 1
    return text[:end]
