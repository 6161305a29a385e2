"""Ranking: headings, neighbours, turns and protection, against hand-made orders."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations import CompressionConfig
from draftapprox_integrations.specpc.text import Passage, Sentence, rank, segment
from draftapprox_integrations.specpc.text.ranking import find_sections, take_turns, with_context


def units_of(*passages: str) -> list[Sentence]:
    """Each character is a unit; "#" is a heading whose section ends at the next one."""
    units = []
    for p, text in enumerate(passages):
        for start, letter in enumerate(text):
            following = text.find("#", start + 1)
            section_end = (len(text) if following < 0 else following) if letter == "#" else None
            units.append(Sentence(p, start, start + 1, letter, section_end, is_title=letter == "#"))
    return units


def in_order(passages: Any, ranked: Any, neighbors: Any, minimum: int = 0) -> Any:
    units = units_of(*passages)
    return with_context(units, find_sections(units), ranked, neighbors, minimum)


def test_a_heading_comes_with_what_stands_under_it() -> None:
    passages = ["#ab#cd", "##", "x"]  # each character a unit; "#" a heading
    order = in_order(passages, [3, 5, 6, 1, 8, 0, 2, 4, 7], 0)
    #                                     the second heading comes with d (5), the first with a (1)
    assert order == [5, 3, 6, 1, 0, 8, 2, 4, 7]


def test_headings_with_nothing_under_them_are_left_out() -> None:
    assert in_order(["##a"], [0, 1, 2], 0) == [2, 1]


def test_each_passage_gets_its_least_number_first() -> None:
    passages = ["#ab", "cdef", "", "g"]
    ranked = [4, 3, 5, 2, 0, 6, 1, 7]
    assert in_order(passages, ranked, 0, 1) == [4, 2, 0, 7, 3, 5, 6, 1]
    assert in_order(passages, ranked, 0, 2) == [4, 2, 0, 7, 3, 1, 5, 6]
    assert take_turns(units_of(*passages), ranked, 0) == ranked


def test_neighbours_come_along_within_their_passage() -> None:
    passages = ["abcde", "fgh"]
    assert in_order(passages, [4, 5, 0, 1, 2, 3, 6, 7], 1) == [4, 3, 5, 6, 0, 1, 2, 7]


def test_a_row_comes_with_its_header_and_heading() -> None:
    text = "# Bridges\n\n| Name | Length |\n|---|---|\n| Alder | 7 |\n| Birch | 9 |\n\nAll were measured."
    (units,) = segment([text])
    assert [unit.text for unit in units][1] == "| Name | Length |\n|---|---|"
    ranking = rank([Passage(text)], [units], [torch.tensor([0.0, 0.0, 1.0, 3.0, 2.0])])
    shown = [unit.text.split("\n")[0] for unit in ranking.order]
    assert shown == ["| Birch | 9 |", "| Name | Length |", "# Bridges", "All were measured.", "| Alder | 7 |"]


@given(st.lists(st.lists(st.floats(-9, 9, width=32), max_size=5), min_size=1, max_size=4), st.integers(0, 3))
def test_every_unit_is_ranked_once_and_by_score(rows: Any, minimum: Any) -> None:
    texts = [" ".join("abcde"[: len(row)]) for row in rows]
    units = segment(texts, "word")
    config = CompressionConfig(granularity="word", min_per_passage=minimum)
    ranking = rank([Passage(text) for text in texts], units, [torch.tensor(row) for row in rows], config)
    assert sorted(ranking.order, key=lambda u: (u.passage, u.start)) == [unit for group in units for unit in group]
    values = [value for row in rows for value in row]
    score = dict(zip([unit for group in units for unit in group], values, strict=True))
    by_score = [score[unit] for unit in ranking.order]
    if minimum == 0:
        assert by_score == sorted(by_score, reverse=True)
    assert ranking.passage_scores == pytest.approx([max(row, default=0.0) for row in rows])
    assert [score[unit] for unit in ranking.best] == sorted((max(row) for row in rows if row), reverse=True)


def test_protected_units_come_first() -> None:
    texts = ["One. Two.", "Three. Four."]
    scores = [torch.tensor([4.0, 3.0]), torch.tensor([2.0, 1.0])]
    passages = [Passage(text) for text in texts]
    ranking = rank(passages, segment(texts), scores, protect=["Four", re.compile("^Tw")])
    assert [unit.text for unit in ranking.order] == ["Two.", "Four.", "One.", "Three."]
    assert ranking.protected == 2


def test_a_protected_match_over_two_units_keeps_both() -> None:
    text = "The clerk Anton. Berg signed it. Nobody else did."
    (units,) = segment([text])
    assert [unit.text for unit in units] == ["The clerk Anton.", "Berg signed it.", "Nobody else did."]
    ranking = rank([Passage(text)], [units], [torch.tensor([1.0, 2.0, 3.0])], protect=["Anton. Berg"])
    assert [unit.text for unit in ranking.order[: ranking.protected]] == ["The clerk Anton.", "Berg signed it."]
