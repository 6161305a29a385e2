"""Rank units by their scores: best first, headings with their sentences, duplicates dropped."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import CompressionConfig
from ..selection import rank_scores, with_neighbors
from .blocks import MAX_UNIT_CHARACTERS
from .deduplication import without_duplicates
from .segmentation import Passage, Sentence, headers_of

# Characters per token vary along a text, so a unit gets a little less than the whole budget; but no less than this.
_SHARE_OF_BUDGET = 0.9
_SHORTEST = 8
Pattern = str | re.Pattern[str]


@dataclass(frozen=True)
class Ranking:
    """Units of all passages, in the order in which they should be kept.

    Attributes:
        order: The protected units, then `min_per_passage` of each passage, then all others by score. Among sentences,
            headings and `keep_context` follow the sentence that brings them; among tokens, neighbours do.
        protected: Number of protected units at the beginning of `order`.
        best: The best unit of each passage that has any, best passage first.
        sections: For each heading the character position where its section ends.
        passage_scores: Per passage the score of its best unit; 0.0 if it has none.
    """

    order: list[Sentence]
    protected: int
    best: list[Sentence]
    sections: dict[Sentence, int]
    passage_scores: list[float]


def longest_units(passages: Sequence[str], budget: int, tokens: int, protect: Sequence[Pattern] = ()) -> list[int]:
    """For each passage the most characters of a unit, so that units fit the budget.

    Where a passage contains protected text its sentences are not cut for the budget: they are kept whole or refused.

    Args:
        passages: Texts.
        budget: Tokens to keep.
        tokens: Of all passages together.
        protect: As for `rank`.
    """
    share = _SHARE_OF_BUDGET * budget * sum(map(len, passages)) / max(tokens, 1)
    limit = min(MAX_UNIT_CHARACTERS, max(_SHORTEST, int(share)))
    patterns = _compiled(protect)
    return [MAX_UNIT_CHARACTERS if any(pattern.search(text) for pattern in patterns) else limit for text in passages]


def rank(
    passages: Sequence[Passage],
    sentences: Sequence[Sequence[Sentence]],
    scores: Sequence[Tensor],
    config: CompressionConfig | None = None,
    *,
    protect: Sequence[Pattern] = (),
    neighbor_tokens: int = 0,
    eligible: Sequence[bool] | None = None,
) -> Ranking:
    """Rank the units of some passages.

    Args:
        passages: The passages.
        sentences: Per passage its units, from `segment`.
        scores: Per passage float32 [units], the higher the better.
        config: Settings; None for the defaults.
        protect: Units that contain one of these come first and must be kept.
        neighbor_tokens: With granularity "token", how many tokens a chosen one brings, itself included.
        eligible: One bool for each unit, passage after passage: the others are left out, unless they are protected or
            come with one that is kept. None: all.
    """
    config = config or CompressionConfig()
    units = [unit for group in sentences for unit in group]
    by_score = rank_scores(torch.cat(list(scores))).tolist() if units else []
    sections = find_sections(units) if config.granularity == "sentence" else {}
    best: dict[int, Sentence] = {}
    for i in by_score:
        if units[i] not in sections:
            best.setdefault(units[i].passage, units[i])
    if eligible is not None:
        by_score = [i for i in by_score if eligible[i]]
    if config.granularity == "sentence":
        by_score = without_duplicates(passages, units, by_score)
        by_score = with_context(units, sections, by_score, config.keep_context, config.min_per_passage)
    else:
        by_score = take_turns(units, by_score, config.min_per_passage)
    if config.granularity == "token":
        by_score = with_neighbors(torch.tensor(by_score, dtype=torch.long), neighbor_tokens, len(units)).tolist()
    first = protected_units(passages, units, protect)
    return Ranking(
        order=[units[i] for i in dict.fromkeys([*first, *by_score])],
        protected=len(first),
        best=list(best.values()),
        sections=sections,
        passage_scores=[float(value.max()) if len(value) else 0.0 for value in scores],
    )


def find_sections(units: Sequence[Sentence]) -> dict[Sentence, int]:
    """The headings, headers and keys among `units`, each with the character position where its section ends.

    A passage of nothing but these has none: they count as sentences.
    """
    with_text = {unit.passage for unit in units if unit.section_end is None}
    return {unit: unit.section_end for unit in units if unit.section_end is not None and unit.passage in with_text}


def with_context(
    units: Sequence[Sentence], sections: Mapping[Sentence, int], ranked: Sequence[int], neighbors: int, minimum: int = 0
) -> list[int]:
    """Keep headings and context with their sentences.

    Headings, headers and keys follow the first-ranked unit that they speak for. A heading without a ranked sentence is
    left out.

    Args:
        units: Sentences in reading order.
        sections: From `find_sections`.
        ranked: Indices of `units`, best first.
        neighbors: Sentences before and after each one that follow it.
        minimum: Sentences of each passage that come before all others.

    Returns:
        Indices of `units` in the order in which they should be kept.
    """
    titles = {i for i, unit in enumerate(units) if unit in sections and unit.is_title}
    headers = headers_of(units)
    order: list[int] = []
    for index in take_turns(units, [index for index in ranked if index not in titles], minimum):
        around = [index]
        for distance in range(1, neighbors + 1):
            around += [index - distance, index + distance]
        here = [i for i in around if 0 <= i < len(units) and units[i].passage == units[index].passage]
        order += [i for i in here if i not in titles]
        order += headers[index]
    return list(dict.fromkeys(order))


def take_turns(units: Sequence[Sentence], ranked: Sequence[int], minimum: int) -> list[int]:
    """Move the `minimum` best units of each passage to the front: every passage's best, then the second best, ..."""
    turns: list[list[int]] = [[] for _ in range(minimum)]
    rest: list[int] = []
    taken: dict[int, int] = {}
    for index in ranked:
        turn = taken.get(units[index].passage, 0)
        taken[units[index].passage] = turn + 1
        (turns[turn] if turn < minimum else rest).append(index)
    return [index for group in (*turns, rest) for index in group]


def protected_units(passages: Sequence[Passage], units: Sequence[Sentence], protect: Sequence[Pattern]) -> list[int]:
    """Indices of the units that contain a match of a pattern, or a part of one that spans several units."""
    patterns = _compiled(protect)
    found: set[int] = set()
    for pattern in patterns:
        matches = [[match.span() for match in pattern.finditer(passage.text)] for passage in passages]
        for i, unit in enumerate(units):
            spans = matches[unit.passage]
            after = bisect_left(spans, (unit.end, 0)) if spans else 0
            overlaps = after > 0 and spans[after - 1][1] > unit.start
            if overlaps or pattern.search(unit.text) is not None:
                found.add(i)
    return sorted(found)


def _compiled(protect: Sequence[Pattern]) -> list[re.Pattern[str]]:
    return [re.compile(re.escape(one)) if isinstance(one, str) else one for one in protect]
