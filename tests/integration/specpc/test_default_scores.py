"""What the packaged weights make of plain cases: a passage that shares nothing with a question is no evidence."""

import pytest

from draftapprox_integrations import LoadedModel, SpecPC

TEXTS = [
    "The bridge was opened in 1932. It is painted red.",
    "The mill is old. It was built in 1821.",
    "Cats sleep most of the day. They hunt at night.",
]


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("When was the bridge opened?", 0),
        ("Which colour is the bridge painted?", 0),
        ("When was the mill built?", 1),
        ("How long do cats sleep?", 2),
    ],
)
def test_the_passage_that_answers_is_the_most_relevant(
    question: str, passage: int, embedded_model: LoadedModel
) -> None:
    scores = [one.score for one in SpecPC(embedded_model).compress(TEXTS, question, max_tokens=30).passages]
    assert max(range(3), key=lambda index: scores[index]) == passage


@pytest.mark.parametrize("question", ["What does a tram ticket cost?", "Population of Tokyo?"])
def test_where_nothing_answers_nothing_is_likely(question: str, embedded_model: LoadedModel) -> None:
    result = SpecPC(embedded_model).compress(TEXTS, question, min_relevance=0.5)
    assert result.tokens_after == 0
