"""Sentences that stand in several passages because chunks overlap, or because a passage was retrieved twice."""

from __future__ import annotations

from collections.abc import Sequence

from .packing import Unit

_REACH = 64  # sentences compared to either side: enough for any overlap
_RIVALS = 16  # kept copies that a sentence is compared with


def without_copies(
    passages: Sequence[str], titles: Sequence[str | None], units: Sequence[Unit], ranked: Sequence[int]
) -> list[int]:
    """`ranked` without sentences of which a copy comes earlier in it.

    Two passages may both say "It has a pool." of different hotels. A sentence is a copy only where the passages, of the
    same title, agree around it until one of them ends, as overlapping chunks of a text do.

    Args:
        passages: the texts.
        titles: of each, or None.
        units: their sentences, in reading order.
        ranked: indices of `units`, the most wanted first.
    """
    texts = [passages[unit.passage][unit.start : unit.end] for unit in units]

    def ends_alike(one: int, other: int, step: int) -> bool:
        """Whether going on from both, they agree until the passage of one ends."""
        for distance in range(step, step * _REACH, step):
            a, b = one + distance, other + distance
            over = [
                not 0 <= i < len(units) or units[i].passage != units[start].passage
                for i, start in ((a, one), (b, other))
            ]
            if any(over):
                return True
            if texts[a] != texts[b]:
                return False
        return True

    def is_copy(one: int, other: int) -> bool:
        here, there = units[one].passage, units[other].passage
        if here == there or titles[here] != titles[there]:
            return False
        return ends_alike(one, other, -1) and ends_alike(one, other, 1)

    kept: dict[str, list[int]] = {}
    order = []
    for index in ranked:
        rivals = kept.setdefault(texts[index], [])
        if any(is_copy(index, rival) for rival in rivals[:_RIVALS]):
            continue
        rivals.append(index)
        order.append(index)
    return order
