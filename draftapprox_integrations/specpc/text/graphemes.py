"""Grapheme clusters: what a reader sees as one character, such as a letter with its marks or a family emoji.

A span that ends inside a cluster tears it apart. `Clusters` moves borders to the edges of clusters (Unicode UAX 29).
"""

from __future__ import annotations

from bisect import bisect_right

import regex

from ...results import Span

# `\X` counts the flags before a flag again for each, which takes quadratic time; so pairs are matched first. A run of
# letters that no mark follows needs no `\X` either, and is skipped at once.
_SIMPLE = r"[\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}\p{Cyrillic}\p{Greek}\p{Nd}\p{P}\x20\t]"
_FLAG = r"\p{Regional_Indicator}{2}(?=\p{Regional_Indicator})"
_SKIPPED_OR_CLUSTER = regex.compile(rf"(?:{_SIMPLE}(?={_SIMPLE}|\Z))++|(?P<cluster>{_FLAG}|\X)")
CLUSTER = regex.compile(rf"{_FLAG}|\X")


class Clusters:
    """The grapheme clusters of a text, in linear time.

    Args:
        text: The text.
    """

    def __init__(self, text: str):
        # Only clusters of several characters matter; plain ASCII has none but the line break \r\n.
        self._long: list[Span] = []
        if not text.isascii() or "\r\n" in text:
            clusters = (found.span("cluster") for found in _SKIPPED_OR_CLUSTER.finditer(text))
            self._long = [(start, end) for start, end in clusters if end - start > 1]
        self._starts = [start for start, _ in self._long]

    def floor(self, position: int) -> int:
        """The last cluster border at or before `position`."""
        start, end = self._around(position)
        return start if start < position < end else position

    def ceil(self, position: int) -> int:
        """The first cluster border at or after `position`."""
        start, end = self._around(position)
        return end if start < position < end else position

    def _around(self, position: int) -> Span:
        index = bisect_right(self._starts, position) - 1
        return self._long[index] if index >= 0 else (0, 0)


def cluster_spans(text: str) -> list[Span]:
    """Spans of all grapheme clusters, in order."""
    return [found.span() for found in CLUSTER.finditer(text)]
