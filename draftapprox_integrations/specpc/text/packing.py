"""Fill a token budget with units, best first, counted exactly in the reader's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...results import Span
from .segmentation import join_spans, split_units

_FILL_ATTEMPTS = 64  # units tried after the first that does not fit
_LEAST_TOKENS = 4  # of each passage, where a little of all is asked for and the budget is scarce

Counter = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Unit:
    """A piece of passage `passage` that is kept or dropped whole."""

    passage: int
    start: int
    end: int


@dataclass(frozen=True)
class Packed:
    """Per passage: the kept spans, the text they make, and its tokens."""

    spans: list[list[Span]]
    texts: list[str]
    tokens: list[int]

    @property
    def total(self) -> int:
        """Tokens of all passages together."""
        return sum(self.tokens)


class Packer:
    """Packs units of some passages into a budget.

    Args:
        passages: The originals.
        tokens: Their token counts.
        separator: Put between pieces.
        count: Counts the tokens of texts.
    """

    def __init__(self, passages: Sequence[str], tokens: Sequence[int], separator: str, count: Counter):
        self._passages, self._tokens = passages, tokens
        self._separator, self._count = separator, count

    def pack(
        self, order: Sequence[Unit], budget: int, sections: Mapping[Unit, int] | None = None
    ) -> tuple[Packed, int]:
        """Keep the longest run of `order` that fits, then later units that still fit.

        Args:
            order: the most wanted first.
            budget: tokens.
            sections: Of each heading, where what stands under it ends: it comes only with something of that.

        Returns:
            What is kept, never more than `budget` tokens, and how long that run was.
        """
        low, high = 0, len(order)
        best = self._measure(order[:0])
        while low < high:  # tokens grow with every unit but for a few at joins, so bisection finds the place
            middle = (low + high + 1) // 2
            tried = self._measure(order[:middle])
            if tried.total <= budget:
                low, best = middle, tried
            else:
                high = middle - 1
        later = order[low + 1 : low + 1 + _FILL_ATTEMPTS]
        return self._fill(best, list(order[:low]), later, budget, sections or {}), low

    def tokens_of(self, units: Sequence[Unit]) -> int:
        """Tokens of what `units` make, joined."""
        return self._measure(units).total

    def beginnings(self, units: Sequence[Unit], budget: int) -> list[Unit]:
        """Something of each unit, as much of the first ones as can be: whole, or its first words that fit.

        Args:
            units: at most one per passage, the most wanted first.
            budget: tokens for all of them; a few of these are set aside for each unit that is still to come.
        """
        kept = []
        for index, unit in enumerate(units):
            waiting = len(units) - index - 1
            reserve = waiting * min(_LEAST_TOKENS, budget // (waiting + 1))
            text = self._passages[unit.passage][unit.start : unit.end]
            words = [Unit(unit.passage, unit.start + a, unit.start + b) for a, b in split_units(text, "word", ())]
            packed, _ = self.pack(words, budget - reserve)
            kept += [Unit(unit.passage, start, end) for start, end in packed.spans[unit.passage]]
            budget -= packed.total
        return kept

    def _fill(
        self, best: Packed, kept: list[Unit], later: Sequence[Unit], budget: int, sections: Mapping[Unit, int]
    ) -> Packed:
        for unit in later:
            if best.total >= budget:
                break
            if unit in sections and not any(
                one.passage == unit.passage and unit.end <= one.start < sections[unit] for one in kept
            ):
                continue
            tried = self._measure([*kept, unit])
            if tried.total <= budget:
                kept.append(unit)
                best = tried
        return best

    def _measure(self, units: Sequence[Unit]) -> Packed:
        by_passage: dict[int, list[Span]] = {}
        for unit in units:
            by_passage.setdefault(unit.passage, []).append((unit.start, unit.end))
        spans: list[list[Span]] = [[] for _ in self._passages]
        texts = [""] * len(self._passages)
        for index, pieces in by_passage.items():
            spans[index] = join_spans(self._passages[index], sorted(pieces))
            texts[index] = self._separator.join(self._passages[index][a:b] for a, b in spans[index])
        touched = list(by_passage)
        tokens = [0] * len(self._passages)
        for index, found in zip(touched, self._count([texts[i] for i in touched]), strict=True):
            tokens[index] = found
            if found >= self._tokens[index]:  # separators made it no shorter: then nothing is gained by cutting
                spans[index] = [(0, len(self._passages[index]))]
                texts[index], tokens[index] = self._passages[index], self._tokens[index]
        return Packed(spans, texts, tokens)
