"""Probabilities from signals: each signal against a loop, and what the model makes of them."""

import json
import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations import SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.specpc.scoring.relevance import Network, RelevanceModels, RelevanceScorer
from draftapprox_integrations.specpc.scoring.scorer import AttentionScorer, TokenScores
from draftapprox_integrations.specpc.scoring.signals import Signals
from draftapprox_integrations.specpc.text import Passage, segment

PASSAGES = [
    Passage("The song of Elm Hall is by Ada Marlow. It has four verses.", "Elm Hall", 0.2),
    Passage("Bruno Tamby died in 1802. He was a baker.", None, None),
    Passage("Ada Marlow died in 1790. She wrote songs. Nobody knows where.", "Ada Marlow", 0.7),
    Passage("", "Empty", 0.9),
]
QUERY = "When did the author of the song of Elm Hall die?"


class Level(AttentionScorer):
    """Attention of two heads that looks at every character alike, but for a word that it likes."""

    def __init__(self, liked: str = "", kind: Any = "heads"):
        super().__init__(lambda scores, owners, units: scores)
        self.liked, self.kind = liked, kind

    def score_tokens(self, query: str, passages: Any) -> TokenScores:
        raise AssertionError("one pass gives the heads apart")

    def score_heads(self, query: str, passages: Any) -> Any:
        rows, spans = [], []
        for passage in passages:
            row = torch.full((2, len(passage.text)), 0.01)
            start = passage.text.find(self.liked) if self.liked else -1
            if start >= 0:
                row[:, start : start + len(self.liked)] = 0.5
            row[1] *= 1.5
            rows.append(row)
            spans.append([(i, i + 1) for i in range(len(passage.text))])
        return rows, spans, 7


def signals_of(passages: Any = PASSAGES, query: str = QUERY, similarity: Any = None, cosine: bool = False) -> Signals:
    sentences = segment([passage.text for passage in passages])
    heads, spans, _ = Level("1790").score_heads(query, passages)
    return Signals(query, passages, sentences, heads, spans, similarity, cosine)


def column(signals: Signals, name: str) -> list[float]:
    return signals.first[:, signals.names.index(name)].tolist()


def z(values: list[float]) -> list[float]:
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return [(value - mean) / spread if spread > 1e-9 else 0.0 for value in values]


def test_the_signals_of_attention_and_place_are_those_of_a_loop() -> None:
    signals = signals_of()
    sentences = [one for group in segment([p.text for p in PASSAGES]) for one in group]
    heads, _, _ = Level("1790").score_heads(QUERY, PASSAGES)
    mean, highest, of_passage, length = [], [], [], []
    for one in sentences:
        rows = heads[one.passage]
        own = [i for i, c in enumerate(PASSAGES[one.passage].text) if one.start <= i < one.end]
        average = [float(row.mean()) for row in rows]
        mean.append(
            statistics.mean(
                (float(r[own].sum()) + 16 * a) / (len(own) + 16) for r, a in zip(rows, average, strict=True)
            )
        )
        highest.append(statistics.mean(float(row[own].max()) for row in rows))
        of_passage.append(average)
        length.append(math.log(max(len(one.text) / 80, 0.05)))
    assert column(signals, "mean") == pytest.approx(z([math.log(v) for v in mean]), abs=1e-4)
    assert column(signals, "highest") == pytest.approx(z([math.log(v) for v in highest]), abs=1e-4)
    passages = z([math.log(max(float(rows.mean()) if rows.shape[1] else 0, 1e-9)) for rows in heads])
    assert column(signals, "passage") == pytest.approx([passages[one.passage] for one in sentences], abs=1e-4)
    assert column(signals, "length") == pytest.approx(length, abs=1e-5)
    assert column(signals, "first") == [1, 0, 1, 0, 1, 0, 0]
    assert column(signals, "position") == pytest.approx([math.log1p(i) for i in (0, 1, 0, 1, 0, 1, 2)])
    retriever = z([0.2, 0.2, 0.7, 0.9])
    assert column(signals, "retriever") == pytest.approx([retriever[one.passage] for one in sentences], abs=1e-5)


def test_the_signals_of_words_are_shares_of_the_query() -> None:
    signals = signals_of()
    coverage, title = column(signals, "coverage"), column(signals, "title")
    # author, song, elm, hall, die: the first sentence has three of them, its passage's second two by its title
    assert coverage[0] == max(coverage)
    assert coverage[1] == pytest.approx(title[1])
    assert coverage[2] == coverage[4] == 0
    assert column(signals, "title_share") == [1, 1, 0, 0, 0, 0, 0]
    assert all(0 <= value <= 1 for value in coverage)


def test_the_second_look_knows_the_first_ones_best_and_what_it_names() -> None:
    signals = signals_of()
    scores = torch.tensor([5.0, 1.0, 2.0, 0.0, 3.0, 0.5, 0.2])
    second = signals.second(scores)
    assert second.shape == (7, len(signals.second_names))
    of = {name: second[:, i].tolist() for i, name in enumerate(signals.second_names)}
    assert of["best"] == [1, 0, 0, 0, 0, 0, 0]
    assert of["best_passage"] == [1, 1, 0, 0, 0, 0, 0]
    assert of["rank"] == pytest.approx([math.log1p(r) for r in (0, 3, 2, 6, 1, 4, 5)])
    assert of["terms"][0] == 0  # it finds itself, which says nothing
    assert max(range(7), key=lambda i: of["terms"][i]) in (4, 5, 6)  # Ada Marlow, also by the title
    assert of["terms_title"] == pytest.approx([0, 0, 0, 0, 1, 1, 1])
    assert of["asks when"] == [1] * 7
    assert of["asks who"] == [0] * 7


def test_what_the_best_sentence_names_is_found() -> None:
    sentences = segment([passage.text for passage in PASSAGES])
    found = RelevanceScorer(Level()).score(QUERY, PASSAGES, sentences)
    first, other, named = (row.tolist() for row in found[:3])
    assert first[0] == max(first)
    assert named[0] == max(named)
    assert min(first[0], named[0]) > 0.5 > 5 * max(other)  # though the other one says of somebody when he died
    assert found.are_probabilities
    assert found.tokens is not None
    assert found.tokens.tokens_read == 7


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.sampled_from(["", "1790", "baker", "verses"]))
def test_the_order_of_passages_changes_no_probability(order: list[int], liked: str) -> None:
    scorer = RelevanceScorer(Level(liked))
    whole = scorer.score(QUERY, PASSAGES, segment([passage.text for passage in PASSAGES]))
    moved = [PASSAGES[i] for i in order]
    found = scorer.score(QUERY, moved, segment([passage.text for passage in moved]))
    for index, row in zip(order, found, strict=True):
        assert row.tolist() == pytest.approx(whole[index].tolist(), abs=1e-4)
        assert all(0 < value < 1 for value in row.tolist())


@pytest.mark.parametrize(
    "texts",
    [["one"], ["...", "!!!"], ["", ""], [], ["\u6a4b\u306f\u8d64\u3044\u3002", "\U0001f600"], ["same. same."] * 3],
)
@pytest.mark.parametrize("query", ["the", "Which bridge?", "\u6a4b"])
def test_few_or_strange_texts(texts: list[str], query: str) -> None:
    passages = [Passage(text, None, score) for text, score in zip(texts, [math.nan, math.inf, 1.0], strict=False)]
    sentences = segment(texts)
    found = RelevanceScorer(Level()).score(query, passages, sentences)
    assert [len(row) for row in found] == [len(group) for group in sentences]
    assert all(bool(torch.isfinite(row).all()) for row in found)


def test_an_embedder_or_a_scorer_of_ones_own_is_heard() -> None:
    sentences = segment([passage.text for passage in PASSAGES])

    def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] if "baker" in text or text == QUERY else [0.0, 1.0] for text in texts]

    class Baker:
        def score(self, query: str, passages: Any, sentences: Any) -> Any:
            return [torch.tensor([5.0 * ("baker" in one.text) for one in group]) for group in sentences]

    without = RelevanceScorer(Level()).score(QUERY, PASSAGES, sentences)
    for given_one, kind in ((embed, "embedder"), (Baker(), "scorer")):
        scorer = RelevanceScorer(Level(), given_one)
        assert scorer.semantic == kind
        found = scorer.score(QUERY, PASSAGES, sentences)
        others = [float(f / w) for row, old in zip(found, without, strict=True) for f, w in zip(row, old, strict=True)]
        assert max(range(7), key=lambda i: others[i]) == 3


def test_a_scorer_that_returns_nonsense_is_named() -> None:
    class Short:
        def score(self, query: str, passages: Any, sentences: Any) -> Any:
            return [torch.zeros(1)]

    with pytest.raises(InvalidInputError, match=r"Short.score must return one tensor"):
        RelevanceScorer(Level(), Short()).score(QUERY, PASSAGES, segment([passage.text for passage in PASSAGES]))


def test_a_network_is_a_sum_over_units() -> None:
    generator = torch.Generator().manual_seed(3)
    shift, scale, weight = (torch.rand(4, generator=generator) + 0.5 for _ in range(3))
    hidden, out = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    network = Network(shift, scale, weight, hidden, out)
    for row in torch.randn(5, 4, generator=generator) * 5:
        x = [min(4.0, max(-4.0, float((v - a) / b))) for v, a, b in zip(row, shift, scale, strict=True)]
        units = [math.tanh(sum(float(h[i]) * x[i] for i in range(4)) + float(h[4])) for h in hidden]
        expected = sum(float(w) * v for w, v in zip(weight, x, strict=True))
        expected += sum(float(o) * u for o, u in zip(out, units, strict=True))
        assert float(network(row)) == pytest.approx(expected, abs=1e-5)


def test_models_survive_json_and_others_are_refused() -> None:
    packaged = RelevanceModels.packaged()
    again = RelevanceModels.of_content(json.loads(json.dumps(packaged.content())))
    assert again.models.keys() == packaged.models.keys()
    assert {semantic for _, semantic in again.models} == {"none", "embedder", "scorer"}
    signals = signals_of()
    for key in (("heads", "none"), ("joint", "none")):
        assert torch.equal(again.models[key].probabilities(signals), packaged.models[key].probabilities(signals))
        assert again.models[key].names == signals.names
    other = packaged.content()
    other["models"][0]["second_names"][0] = "other"
    for bad in ({}, {"format": 1}, other, {"format": 2, "models": 5}):
        with pytest.raises(InvalidInputError, match="these relevance models cannot be used"):
            RelevanceModels.of_content(bad)


def test_the_packaged_models_are_small() -> None:
    for model in RelevanceModels.packaged().models.values():
        parts = (model.first.weight, model.second.weight, model.second.hidden, model.second.out)
        assert sum(part.numel() for part in parts) < 1100


def test_the_default_scores_with_probabilities(smol: SpecPC) -> None:
    engine = smol
    texts = [passage.text for passage in PASSAGES]
    assert isinstance(engine.scorer, RelevanceScorer)
    best = engine.compress(texts, QUERY, top_n=1)
    assert sum(bool(passage.text) for passage in best.passages) == 1
    assert engine.compress(texts, QUERY, recall=0.5).tokens_after < best.tokens_before
    assert all(0 < passage.score < 1 for passage in best.passages[:3])
