"""Pack ranked units into a token budget, counted exactly with the tokenizer of the text's reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import BudgetError
from ...results import Span
from .graphemes import cluster_spans
from .ranking import Ranking
from .segmentation import Sentence, join_spans, words

_FILL_ATTEMPTS = 64  # units tried after the first that does not fit
_MOST_PIECES = 4096  # words or characters tried where no unit fits
_JOIN_TOKENS = 4  # that a unit may need less behind other text than alone
_LEAST_TOKENS = 4  # reserved for each passage where every passage must keep something and the budget is scarce

Counter = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Packed:
    """The kept part of each passage.

    Attributes:
        spans: Per passage its kept character spans, ascending.
        texts: Per passage the text of these spans, joined by the separator.
        tokens: Per passage the tokens of that text.
    """

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
        passages: The original texts.
        tokens: Their token counts.
        separator: Put between kept pieces of a passage.
        count: Counts the tokens of texts.
    """

    def __init__(self, passages: Sequence[str], tokens: Sequence[int], separator: str, count: Counter):
        self._passages, self._tokens = passages, tokens
        self._separator, self._count = separator, count

    def pack(self, ranking: Ranking, budget: int, *, best_of_each: bool = False) -> Packed:
        """Keep as many units as fit, in the order of `ranking`.

        Args:
            ranking: The units, from `rank`.
            budget: Most tokens of all passages together.
            best_of_each: Keep something of each passage first: its best unit, or the beginning of it.

        Returns:
            At most `budget` tokens; something, if a single word fits.

        Raises:
            BudgetError: the protected units do not fit.
        """
        order = ranking.order
        if best_of_each and ranking.best:
            best = self.beginnings(ranking.best, budget)
            order = list(dict.fromkeys([*order[: ranking.protected], *best, *order]))
        packed, fitted = self.fill(order, budget, ranking.sections)
        if fitted < ranking.protected:
            needed = self._measure(order[: ranking.protected]).total
            raise BudgetError(
                f"the protected text needs {needed} tokens, the budget is {budget}. "
                f"Raise max_tokens to at least {needed} or protect less."
            )
        if fitted == 0 and order:  # not even the best unit fits, but some of its words may
            packed, _ = self.fill([*self.beginnings(order[:1], budget), *order[1:]], budget, ranking.sections)
        return packed if packed.total else self._anything(order, budget)

    def _anything(self, order: Sequence[Sentence], budget: int) -> Packed:
        """Where not even one unit fits: the beginning of one, or single words or characters."""
        for unit in order[:_FILL_ATTEMPTS]:
            packed = self._measure(self.beginnings([unit], budget, torn=True))
            if packed.total:
                return packed
        for split in (words, cluster_spans):
            pieces = [self._unit(u.passage, u.start + a, u.start + b) for u in order for a, b in split(u.text)]
            counts = self._count([piece.text for piece in pieces[:_MOST_PIECES]])
            fitting = [
                piece for piece, tokens in zip(pieces, counts, strict=False) if piece.text.strip() and tokens <= budget
            ]
            packed, _ = self.fill(fitting[: _FILL_ATTEMPTS + 1], budget)
            if packed.total:
                return packed
        return self._measure([])

    def fill(
        self, order: Sequence[Sentence], budget: int, sections: Mapping[Sentence, int] | None = None
    ) -> tuple[Packed, int]:
        """Keep the longest prefix of `order` that fits, then later units that still fit.

        Args:
            order: Units, best first.
            budget: Most tokens.
            sections: For each heading the end of its section: a heading fills a gap only with a sentence of it.

        Returns:
            The kept text, at most `budget` tokens; the length of the prefix.
        """
        best = self._measure(order[:0])
        low, high = 0, min(1, len(order))
        while high < len(order):  # up in doubling steps: no text much longer than the budget is ever tokenized
            tried = self._measure(order[:high])
            if tried.total > budget:
                high -= 1
                break
            low, best = high, tried
            high = min(2 * high, len(order))
        while low < high:  # token counts grow with every unit but for a few at joins, so bisection finds the prefix
            middle = (low + high + 1) // 2
            tried = self._measure(order[:middle])
            if tried.total <= budget:
                low, best = middle, tried
            else:
                high = middle - 1
        later = order[low + 1 : low + 1 + _FILL_ATTEMPTS]
        alone = self._count([unit.text for unit in later])
        later = [
            unit for unit, tokens in zip(later, alone, strict=True) if tokens <= budget - best.total + _JOIN_TOKENS
        ]
        return self._fill_gaps(best, list(order[:low]), later, budget, sections or {}), low

    def beginnings(self, units: Sequence[Sentence], budget: int, *, torn: bool = False) -> list[Sentence]:
        """Something of each unit: the whole, or its first words that fit.

        Args:
            units: At most one per passage, best first.
            budget: Most tokens of all of them; a few are reserved for each unit that is still to come.
            torn: Whether a word that does not fit is cut.
        """
        kept = []
        for index, unit in enumerate(units):
            waiting = len(units) - index - 1
            reserve = waiting * min(_LEAST_TOKENS, budget // (waiting + 1))
            piece = self._beginning(unit, budget - reserve, torn)
            if piece is not None:
                kept.append(piece)
                budget -= self._measure([piece]).total
        return kept

    def _beginning(self, unit: Sentence, budget: int, torn: bool) -> Sentence | None:
        """The longest beginning of a unit that fits and ends between words; if `torn`, else between characters."""
        for split in (words, cluster_spans) if torn else (words,):
            borders = split(unit.text)
            low, high = 0, len(borders)
            while low < high:
                middle = (low + high + 1) // 2
                tried = self._unit(unit.passage, unit.start + borders[0][0], unit.start + borders[middle - 1][1])
                if self._measure([tried]).total <= budget:
                    low = middle
                else:
                    high = middle - 1
            if low:
                return self._unit(unit.passage, unit.start + borders[0][0], unit.start + borders[low - 1][1])
        return None

    def _unit(self, passage: int, start: int, end: int) -> Sentence:
        return Sentence(passage, start, end, self._passages[passage][start:end])

    def _fill_gaps(
        self,
        best: Packed,
        kept: list[Sentence],
        later: Sequence[Sentence],
        budget: int,
        sections: Mapping[Sentence, int],
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

    def _measure(self, units: Sequence[Sentence]) -> Packed:
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
        for index, count in zip(touched, self._count([texts[i] for i in touched]), strict=True):
            tokens[index] = count
            if count >= self._tokens[index]:  # separators made it no shorter, so cutting gains nothing
                spans[index] = [(0, len(self._passages[index]))]
                texts[index], tokens[index] = self._passages[index], self._tokens[index]
        return Packed(spans, texts, tokens)
