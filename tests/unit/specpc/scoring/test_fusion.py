"""One score from many: each part is heard, none is needed."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core.embeddings import MockEmbedding

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import SpecPCCompressor
from draftapprox_integrations.llama_index import SpecPCPostprocessor
from draftapprox_integrations.specpc.scoring.bm25 import BM25Index, BM25Scorer, split_words
from draftapprox_integrations.specpc.scoring.embedder import EmbedderScorer, similarities
from draftapprox_integrations.specpc.scoring.fusion import FusionScorer, Part, RetrieverScorer
from draftapprox_integrations.specpc.scoring.scales import standardize, standardize_log, unscaled
from draftapprox_integrations.specpc.text import Passage, Sentence

TEXTS = ["Harbour\nThe crane lifts twelve tonnes.", "Ferry\nIt carries 148 passengers.", "Ferry\nIt is blue."]
FLAT = torch.full((3,), 0.1)


class Known:
    """A scorer that returns scores given in advance."""

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def score(self, query: Any, passages: Any, sentences: Any) -> Any:
        return self.scores


def fuse(
    query: Any, texts: Any, attention: Any, owners: Any, retriever_scores: Any = None, embedder: Any = None
) -> Any:
    """Fused scores float32 [texts], of texts that belong to the passages `owners`."""
    groups = [[i for i, owner in enumerate(owners) if owner == passage] for passage in range(max(owners) + 1)]
    scores = retriever_scores or [None] * len(groups)
    passages = [
        Passage("\n".join(texts[i] for i in group), None, score) for group, score in zip(groups, scores, strict=True)
    ]
    sentences = [[Sentence(passage, i, i + 1, texts[i]) for i in group] for passage, group in enumerate(groups)]
    parts = [Part(Known([attention[group] for group in groups]), scale=standardize_log), BM25Scorer()]
    parts += [EmbedderScorer(embedder)] if embedder else []
    found = FusionScorer([*parts, Part(RetrieverScorer(), 0.5, unscaled)]).score(query, passages, sentences)
    fused = torch.zeros(len(texts))
    for group, row in zip(groups, found, strict=True):
        fused[group] = row
    return fused


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_standardize(values: Any) -> None:
    found = standardize(torch.tensor(values))
    assert torch.isfinite(found).all()
    assert abs(float(found.mean())) < 1e-3
    assert abs(float(found.std()) - 1) < 1e-3 or float(found.abs().max()) == 0
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert not (a > b and found[i] < found[j])


def test_words_alone_decide_where_attention_is_level() -> None:
    assert int(fuse("How many passengers does the ferry carry?", TEXTS, FLAT, [0, 1, 1]).argmax()) == 1


def test_attention_alone_decides_where_no_word_is_shared() -> None:
    attention = torch.tensor([0.1, 0.1, 0.9])
    assert int(fuse("Zzz?", TEXTS, attention, [0, 1, 1]).argmax()) == 2


def test_the_retriever_and_the_embedder_are_heard() -> None:
    alike = ["the same words"] * 3
    assert int(fuse("Zzz?", alike, FLAT, [0, 1, 2], [0.1, 0.2, 0.9]).argmax()) == 2
    vectors = {"Zzz?": [1.0, 0.0], "a": [0.0, 1.0], "b": [1.0, 0.1], "c": [-1.0, 0.0]}
    found = fuse("Zzz?", ["a", "b", "c"], FLAT, [0, 1, 2], None, lambda texts: [vectors[text] for text in texts])
    assert int(found.argmax()) == 1


@pytest.mark.parametrize("scores", [[None, None, None], [0.5, None, math.nan], [math.inf, 1.0, 2.0], [3.0, 3.0, 3.0]])
def test_retriever_scores_that_say_little(scores: Any) -> None:
    assert torch.isfinite(fuse("ferry", TEXTS, FLAT, [0, 1, 2], scores)).all()


def test_what_the_best_sentence_names_is_looked_for() -> None:
    texts = ["The song of Elm Hall is by Ada Marlow.", "Bruno Tamby died in 1802.", "Ada Marlow died in 1790."]
    found = fuse("When did the author of the song of Elm Hall die?", texts, FLAT, [0, 1, 2])
    assert found.argsort(descending=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize("texts", [["one"], ["...", "!!!"], ["", ""], ["\u6a4b\u306f\u8d64\u3044", "\U0001f600"]])
def test_few_or_strange_texts(texts: Any) -> None:
    found = fuse("the", texts, torch.zeros(len(texts)), list(range(len(texts))))
    assert found.shape == (len(texts),)
    assert torch.isfinite(found).all()


def test_words_without_any() -> None:
    assert BM25Index(["", "..."], [0, 1]).scores("the bridge").tolist() == [0.0, 0.0]
    assert BM25Index(["a bridge", "a mill"], [0, 1]).scores("...").tolist() == [0.0, 0.0]
    assert BM25Index(["a bridge", "a mill"], [0, 1]).scores("bridge")[0] > 0


def test_names_that_differ_in_one_letter_or_digit() -> None:
    texts = [f"Hall {name}\nIt seats {seats}." for name, seats in [("B", 40), ("C", 50), ("7", 60), ("8", 70)]]
    for number, name in enumerate("BC78"):
        assert int(BM25Index(texts, range(4)).scores(f"How many seats has Hall {name}?").argmax()) == number
    assert split_words(["Ann's hall, Ann\u2019s an"]) == [["ann", "hall", "ann"]]


def test_a_language_without_spaces() -> None:
    texts = [
        "\u6a4b\u306f\u8d64\u3044\u3002",
        "\u7d75\u306f\u9752\u3044\u3002",
    ]  # the bridge is red, the picture is blue
    assert (
        int(BM25Index(texts, [0, 1]).scores("\u6a4b\u306e\u8272\u306f\uff1f").argmax()) == 0
    )  # what colour is the bridge?


def test_new_terms_are_rare_words_that_the_query_lacks() -> None:
    texts = [
        f"The {kind} stands in the park, said {who}."
        for kind, who in zip("abcdef", ["Ada Marlow"] * 2 + ["he"] * 4, strict=True)
    ]
    words = BM25Index([text.replace("The a", "The mill") for text in texts], range(6))
    assert words.new_terms(0, "Where is the mill?") == ["ada", "marlow"]  # "stands", "park" and "said" are everyone's


def test_what_alike_passages_share_is_not_looked_for() -> None:
    names = ["Ashbrook", "Birchfield", "Claypool", "Dunmouth"]
    texts = [
        f"{name} Hotel\nIt offers {count} rooms on four floors."
        for name, count in zip(names, (11, 12, 13, 14), strict=True)
    ]
    texts.append("Ashbrook Hotel\nLong ago it was a school.")
    found = fuse("How many rooms are there in Ashbrook Hotel?", texts, torch.full((5,), 0.1), [0, 1, 2, 3, 0])
    assert found.argsort(descending=True).tolist()[:2] == [0, 4]


def test_embedders_of_both_frameworks() -> None:
    for embedder in (DeterministicFakeEmbedding(size=8), MockEmbedding(embed_dim=4)):
        found = similarities(embedder, "a question", ["one", "two", "three"])
        assert found.shape == (3,)
        assert (found <= 1 + 1e-6).all()
    langchain = DeterministicFakeEmbedding(size=8)
    expected = torch.nn.functional.cosine_similarity(
        torch.tensor(langchain.embed_documents(["one", "two"])), torch.tensor(langchain.embed_query("one"))[None]
    )
    assert torch.allclose(similarities(langchain, "one", ["one", "two"]), expected.float())


@pytest.mark.parametrize(
    ("embedder", "problem"),
    [
        (
            lambda texts: [[1.0]] * (len(texts) - 1),
            "one vector of finite numbers for each text .[0-9]+ texts gave",
        ),
        (lambda texts: [[math.nan, 1.0] for _ in texts], "for each text .NaN or infinite numbers are among them"),
        (lambda texts: [[math.inf, 1.0]] + [[1.0, 1.0] for _ in texts[1:]], "NaN or infinite numbers are among them"),
        (lambda texts: "text", "must return one vector of finite numbers"),
        (lambda texts: [], "must return one vector|failed: ValueError"),
        (lambda texts: 1 / 0, "the embedder function failed: ZeroDivisionError"),
        (object(), "embedder must be a LangChain Embeddings, a LlamaIndex BaseEmbedding, a function"),
        ("MiniLM", "embedder must be a LangChain Embeddings.*; got 'MiniLM'"),
        (MockEmbedding, "embedder must be"),
    ],
)
def test_an_embedder_that_fails_is_named(tiny: LoadedModel, embedder: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        SpecPC(tiny, embedder=embedder).compress(["One. Two.", "Three. Four."], "two?", max_tokens=4)


def test_retrieval_parts_refuse_it_when_they_are_made(tiny: LoadedModel) -> None:
    for part in (SpecPCPostprocessor, SpecPCCompressor):
        with pytest.raises(InvalidInputError, match="embedder must be"):
            part(tiny, embedder="MiniLM")


def test_retriever_scores_must_fit_the_passages(tiny: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="for each of the 2 passages; got 1"):
        SpecPC(tiny).compress(["One. Two.", "Three. Four."], "two?", max_tokens=4, retriever_scores=[0.1])
    with pytest.raises(InvalidInputError, match=r"retriever_scores\[1\] must be a number or None; got 'high'"):
        SpecPC(tiny).compress(["One. Two.", "Three. Four."], "two?", max_tokens=4, retriever_scores=[0.1, "high"])


def test_a_fusion_is_a_distribution_over_all_sentences() -> None:
    found = fuse("ferry", TEXTS, FLAT, [0, 1, 1])
    assert float(found.sum()) == pytest.approx(1.0)
    assert found.gt(0).all()


def test_weights_of_parts_count() -> None:
    passages = [Passage("a"), Passage("b")]
    sentences = [[Sentence(0, 0, 1, "a")], [Sentence(1, 0, 1, "b")]]
    first, second = Known([torch.tensor([1.0]), torch.tensor([0.0])]), Known([torch.tensor([0.0]), torch.tensor([1.0])])
    for weight, best in ((0.5, 0), (2.0, 1)):
        found = torch.cat(FusionScorer([first, Part(second, weight)]).score("q", passages, sentences))
        assert int(found.argmax()) == best
