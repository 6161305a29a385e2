"""From token scores to an order of units, and to what of it fits a budget."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import SpecPCConfig
from ...errors import BudgetError
from ...models.tokenization import Encoded
from ..selection import pool_scores, rank, with_neighbors
from .deduplication import without_copies
from .packing import Packed, Packer, Unit
from .segmentation import split_units, unit_of_tokens

Pattern = str | re.Pattern[str]
Combine = Callable[[Sequence[Unit], Tensor], Tensor]  # (sentences, the draft's scores of them) -> final scores

# A sentence counts as if it had this many more tokens of its passage's average attention. Short ones (headings,
# fragments) then win only when much looked at, and a passage that is looked at lifts its sentences.
PRIOR_TOKENS = 16


@dataclass(frozen=True)
class Ranking:
    """Units of some passages in the order in which they should be kept.

    Attributes:
        order: Every unit once: the protected ones, then each passage's `min_per_passage`, then by score (and, for
            tokens, closeness to a better one); of sentences as `in_context` orders them.
        protected: How many at the beginning of `order` must be kept.
        best: The best unit of each passage that has any, best passage first.
        sections: Of each heading, where what stands under it ends.
        passage_scores: Per passage the score of its best unit; 0.0 if it has none.
    """

    order: list[Unit]
    protected: int
    best: list[Unit]
    sections: dict[Unit, int]
    passage_scores: list[float]


def rank_units(
    passages: Sequence[str],
    encoded: Sequence[Encoded],
    scores: Sequence[Tensor],
    config: SpecPCConfig,
    protect: Sequence[Pattern],
    combine: Combine | None = None,
    titles: Sequence[str | None] | None = None,
) -> Ranking:
    """Order the units of `passages`.

    A sentence is worth the mean of its tokens' scores, drawn towards the mean of its passage (`PRIOR_TOKENS`); a
    word or token the maximum of its pooled scores, and tokens bring their neighbours, as in the paper.

    Args:
        passages: The texts.
        encoded: Their tokens, as the draft read them.
        scores: Per passage float32 [tokens].
        config: `granularity`, `pool_type`, `kernel_size`, `neighbor_tokens`, `keep_context` and `min_per_passage` are
            used.
        protect: Units with a match are kept before all others.
        combine: Makes the sentences' final scores of what the draft says of them.
        titles: Of the passages; copies of a sentence are left out where they are the same.
    """
    units: list[Unit] = []
    values: list[Tensor] = []
    for index, (text, tokens, found) in enumerate(zip(passages, encoded, scores, strict=True)):
        spans = split_units(text, config.granularity, tokens.spans)
        owners = torch.tensor(unit_of_tokens(spans, tokens.spans), dtype=torch.long)
        if config.granularity == "sentence":
            values.append(sentence_scores(found, owners, len(spans)))
        else:
            pooled = pool_scores(found, config.pool_type, config.kernel_size) if len(found) else found
            values.append(highest_scores(pooled, owners, len(spans)))
        units += [Unit(index, start, end) for start, end in spans]
    if combine is not None and config.granularity == "sentence" and units:
        values = list(combine(units, torch.cat(values)).split([len(value) for value in values]))
    ranked = rank(torch.cat(values)) if values else torch.empty(0, dtype=torch.long)
    by_score = ranked.tolist()
    sections = sections_of(passages, units) if config.granularity == "sentence" else {}
    best: dict[int, Unit] = {}
    for i in by_score:
        if units[i] not in sections:
            best.setdefault(units[i].passage, units[i])
    if config.granularity == "sentence":
        by_score = without_copies(passages, titles or [None] * len(passages), units, by_score)
        by_score = in_context(units, sections, by_score, config.keep_context, config.min_per_passage)
    else:
        by_score = shared_out(units, by_score, config.min_per_passage)
    ranked = torch.tensor(by_score, dtype=torch.long)
    if config.granularity == "token":
        ranked = with_neighbors(ranked, config.resolved_neighbors(), len(units))
    first = [i for i, unit in enumerate(units) if _matches(passages[unit.passage], unit, protect)] if protect else []
    return Ranking(
        order=[units[i] for i in dict.fromkeys([*first, *ranked.tolist()])],
        protected=len(first),
        best=list(best.values()),
        sections=sections,
        passage_scores=[float(value.max()) if len(value) else 0.0 for value in values],
    )


def keep_within(packer: Packer, ranking: Ranking, budget: int, *, best_of_each: bool) -> Packed:
    """What of the passages fits `budget` tokens.

    Args:
        packer: Holds the passages.
        ranking: Of their units.
        budget: At most so many tokens.
        best_of_each: First something of each passage: its best unit, or the first words of that.

    Raises:
        BudgetError: the protected units do not fit.
    """
    order = ranking.order
    if best_of_each and ranking.best:
        best = packer.beginnings(ranking.best, budget)
        order = list(dict.fromkeys([*order[: ranking.protected], *best, *order]))
    packed, fitted = packer.pack(order, budget, ranking.sections)
    if fitted < ranking.protected:
        needed = packer.tokens_of(order[: ranking.protected])
        raise BudgetError(
            f"the protected text needs {needed} tokens, the budget is {budget}. "
            f"Raise max_tokens to at least {needed} or protect less."
        )
    if fitted == 0 and order:  # not even the best unit fits, but some of its words may
        packed, _ = packer.pack([*packer.beginnings(order[:1], budget), *order[1:]], budget, ranking.sections)
    return packed


def sections_of(passages: Sequence[str], units: Sequence[Unit]) -> dict[Unit, int]:
    """Each heading among the sentences `units`, and where what stands under it ends: at the next one, or the end.

    A passage of headings only has none: there they are what it says.
    """
    headings = [unit for unit in units if passages[unit.passage].startswith("#", unit.start)]
    with_text = {unit.passage for unit in set(units) - set(headings)}
    headings = [unit for unit in headings if unit.passage in with_text]
    following = [*headings[1:], None]
    return {
        unit: after.start if after is not None and after.passage == unit.passage else len(passages[unit.passage])
        for unit, after in zip(headings, following, strict=False)
    }


def in_context(
    units: Sequence[Unit], sections: Mapping[Unit, int], ranked: Sequence[int], neighbors: int, minimum: int = 0
) -> list[int]:
    """The order in which sentences are kept, so that none hangs in the air.

    A heading goes with the first wanted sentence under it; one with no sentence under it is left out. Then come
    `neighbors` sentences before and after.

    Args:
        units: sentences, in reading order.
        sections: from `sections_of`.
        ranked: indices of `units`, the most wanted first.
        neighbors: how many around each.
        minimum: how many of each passage come before all others.
    """
    headings = {i for i, unit in enumerate(units) if unit in sections}
    in_order = sorted(headings)
    order: list[int] = []
    for index in shared_out(units, [index for index in ranked if index not in headings], minimum):
        around = [index]
        for distance in range(1, neighbors + 1):
            around += [index - distance, index + distance]
        here = [i for i in around if 0 <= i < len(units) and units[i].passage == units[index].passage]
        order += [i for i in here if i not in headings]
        before = bisect_left(in_order, index)
        if before and units[in_order[before - 1]].passage == units[index].passage:
            order.append(in_order[before - 1])
    return list(dict.fromkeys(order))


def shared_out(units: Sequence[Unit], ranked: Sequence[int], minimum: int) -> list[int]:
    """`ranked`, but the `minimum` best of each passage come first: every passage's best, then the second ones, ..."""
    turns: list[list[int]] = [[] for _ in range(minimum)]
    rest: list[int] = []
    taken: dict[int, int] = {}
    for index in ranked:
        turn = taken.get(units[index].passage, 0)
        taken[units[index].passage] = turn + 1
        (turns[turn] if turn < minimum else rest).append(index)
    return [index for group in (*turns, rest) for index in group]


def sentence_scores(scores: Tensor, owners: Tensor, units: int) -> Tensor:
    """float32 [units]: mean score of each unit's tokens and of `PRIOR_TOKENS` average tokens of the passage.

    Args:
        scores: float32 [tokens] of one passage.
        owners: LongTensor [tokens]: the unit of each token, -1 for none.
        units: how many units there are.
    """
    inside = owners >= 0
    sums = torch.zeros(units).index_add(0, owners[inside], scores[inside])
    counts = torch.bincount(owners[inside], minlength=units)
    average = scores.mean() if len(scores) else torch.tensor(0.0)
    return (sums + PRIOR_TOKENS * average) / (counts + PRIOR_TOKENS)


def highest_scores(scores: Tensor, owners: Tensor, units: int) -> Tensor:
    """float32 [units]: the highest score among each unit's tokens; 0 for a unit without. Args as `sentence_scores`."""
    inside = owners >= 0
    return torch.zeros(units).scatter_reduce(0, owners[inside], scores[inside], reduce="amax", include_self=False)


def _matches(text: str, unit: Unit, protect: Sequence[Pattern]) -> bool:
    piece = text[unit.start : unit.end]
    return any(p in piece if isinstance(p, str) else p.search(piece) is not None for p in protect)
