"""Sentences that occur in several passages because chunks overlap, or because a passage was retrieved twice."""

from __future__ import annotations

from collections.abc import Sequence

from .segmentation import Passage, Sentence

_REACH = 64  # sentences compared to either side: enough for any overlap
_RIVALS = 16  # kept duplicates that a sentence is compared with


def without_duplicates(passages: Sequence[Passage], sentences: Sequence[Sentence], ranked: Sequence[int]) -> list[int]:
    """Drop duplicates of higher-ranked sentences.

    Two passages may both say "It has a pool." about different hotels. So a sentence is a duplicate only where passages
    with the same title agree around it until one of them ends, as overlapping chunks of one text do.

    Args:
        passages: The passages.
        sentences: All their sentences, in reading order.
        ranked: Indices of `sentences`, best first.

    Returns:
        `ranked` without the duplicates.
    """

    def agree(one: int, other: int, step: int) -> bool:
        """Whether both passages read the same from here on, in steps of 1 or -1, until one of them ends."""
        for distance in range(step, step * _REACH, step):
            a, b = one + distance, other + distance
            if not inside(a, one) or not inside(b, other):
                return True
            if sentences[a].text != sentences[b].text:
                return False
        return True

    def inside(index: int, start: int) -> bool:
        return 0 <= index < len(sentences) and sentences[index].passage == sentences[start].passage

    def is_duplicate(one: int, other: int) -> bool:
        here, there = sentences[one].passage, sentences[other].passage
        if here == there or passages[here].title != passages[there].title:
            return False
        return agree(one, other, -1) and agree(one, other, 1)

    kept: dict[str, list[int]] = {}
    order = []
    for index in ranked:
        rivals = kept.setdefault(sentences[index].text, [])
        if any(is_duplicate(index, rival) for rival in rivals[:_RIVALS]):
            continue
        rivals.append(index)
        order.append(index)
    return order
