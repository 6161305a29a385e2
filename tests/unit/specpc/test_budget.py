"""Budgets by recall, relevance and passages: against a naive loop, and through a scorer with known probabilities."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.specpc.budget import Budget
from draftapprox_integrations.specpc.scoring.scorer import SentenceScores

TEXTS = ["Alder is old. Birch is tall. Cedar is red.", "Dogwood is low. Elm is grey.", "Fir is green."]
GIVEN = {"Alder": 0.9, "Birch": 0.02, "Cedar": 0.3, "Dogwood": 0.01, "Elm": 0.5, "Fir": 0.05}


class Given:
    """A scorer whose scores are known, and probabilities or not."""

    def __init__(self, are_probabilities: bool = True):
        self.are_probabilities = are_probabilities

    def score(self, query: str, passages: Any, sentences: Any) -> SentenceScores:
        scores = [torch.tensor([GIVEN[one.text.split()[0]] for one in group]) for group in sentences]
        return SentenceScores(scores, None, self.are_probabilities)


@pytest.fixture
def engine(tiny: LoadedModel) -> SpecPC:
    return SpecPC(tiny, scorer=Given())


def kept(result: Any) -> list[str]:
    return [passage.text.replace("\n", " ") for passage in result.passages]


@given(
    st.lists(st.lists(st.integers(0, 1000), max_size=5), max_size=5),
    st.none() | st.integers(1, 100),
    st.none() | st.integers(0, 1000),
    st.none() | st.integers(1, 6),
)
def test_what_is_eligible_is_what_a_loop_says(
    rows: list[list[int]], recall: int | None, least: int | None, top_n: int | None
) -> None:
    scores = [torch.tensor(row, dtype=torch.float32) / 1024 for row in rows]  # exact sums
    limits = Budget(
        recall=None if recall is None else recall / 100,
        min_relevance=None if least is None else least / 1024,
        top_n=top_n,
    )
    flat = [(p, value / 1024) for p, row in enumerate(rows) for value in row]
    order = sorted(range(len(flat)), key=lambda i: -flat[i][1])
    best = sorted(range(len(rows)), key=lambda p: -max(rows[p], default=-1))[: top_n or len(rows)]
    enough, mass, among = [False] * len(flat), 0.0, sum(value for _, value in flat)
    for i in order:
        enough[i] = recall is not None and recall < 100 and mass >= recall / 100 * among
        mass += flat[i][1]
    expected = [
        not enough[i] and (top_n is None or p in best) and (least is None or value >= least / 1024)
        for i, (p, value) in enumerate(flat)
    ]
    assert limits.eligible(scores) == expected


def test_relevance_drops_what_is_below_it_even_everything(engine: SpecPC) -> None:
    assert kept(engine.compress(TEXTS, "q", min_relevance=0.3)) == ["Alder is old. Cedar is red.", "Elm is grey.", ""]
    nothing = engine.compress(TEXTS, "q", min_relevance=0.95)
    assert kept(nothing) == ["", "", ""]
    assert nothing.tokens_after == 0
    assert kept(engine.compress(TEXTS, "q", min_relevance=0.95, on_empty="keep_best")) == [
        "Alder is old.",
        "Elm is grey.",
        "Fir is green.",
    ]
    assert kept(engine.compress(TEXTS, "q", min_relevance=0.95, protect=["Birch"])) == ["Birch is tall.", "", ""]


def test_recall_keeps_the_fewest_sentences_that_hold_it_under_a_cap(engine: SpecPC) -> None:
    assert kept(engine.compress(TEXTS, "q", recall=0.5)) == ["Alder is old.", "", ""]
    assert kept(engine.compress(TEXTS, "q", recall=0.6)) == ["Alder is old.", "Elm is grey.", ""]
    assert kept(engine.compress(TEXTS, "q", recall=1)) == TEXTS
    capped = engine.compress(TEXTS, "q", recall=1, max_tokens=sum(engine.count_tokens(TEXTS)) - 1)
    assert kept(capped) == [TEXTS[0], "Elm is grey.", TEXTS[2]]


def test_the_best_passages_in_the_order_asked_for(engine: SpecPC) -> None:
    assert kept(engine.compress(TEXTS, "q", top_n=2)) == [*TEXTS[:2], ""]
    result = engine.compress([TEXTS[2], TEXTS[0], TEXTS[1]], "q", order="relevance")
    assert [passage.index for passage in result.passages] == [1, 2, 0]
    assert kept(result) == TEXTS
    assert [round(passage.score, 2) for passage in result.passages] == [0.9, 0.5, 0.05]


def test_scores_that_are_no_probabilities_are_refused(tiny: LoadedModel) -> None:
    engine = SpecPC(tiny, scorer=Given(are_probabilities=False))
    for limit in ({"recall": 0.9}, {"min_relevance": 0.1}):
        with pytest.raises(InvalidInputError, match="needs the probability of each sentence"):
            engine.compress(TEXTS, "q", **limit)
    assert kept(engine.compress(TEXTS, "q", top_n=1)) == [TEXTS[0], "", ""]


@pytest.mark.parametrize(
    "bad",
    [
        {"recall": 0},
        {"recall": 1.1},
        {"recall": True},
        {"recall": math.nan},
        {"min_relevance": -0.1},
        {"min_relevance": "0.5"},
        {"top_n": 0},
        {"top_n": 1.5},
        {"order": "score"},
        {"max_tokens": 5, "keep_ratio": 0.5},
    ],
)
def test_bad_limits_are_named(engine: SpecPC, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=list(bad)[-1]):
        engine.compress(TEXTS, "q", **bad)
