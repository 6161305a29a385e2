"""Grapheme clusters: the borders are those of the `regex` module's `\\X`, found in linear time; no unit tears one."""

from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations import CompressionConfig, SpecPC, load_model
from draftapprox_integrations.errors import BudgetError
from draftapprox_integrations.specpc.scoring.bm25 import BM25Scorer
from draftapprox_integrations.specpc.text.graphemes import Clusters, cluster_spans
from tests.conftest import tiny_llama

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
PARTS = [
    *"ab .,;:\n\t|-#=<>{}[]\"'", "\r\n", "e\u0301", "\u0301", "\u200d", FAMILY, "\U0001f1e9", "\U0001f1ea",
    "1\ufe0f\u20e3", "\U0001f44d\U0001f3fd", "\u0e01\u0e33", "\u0e31", "\u0915\u094d\u0937", "\u1100\u1161\u11a8",
    "\u4e2d", "\u3002", "\ufeff",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.characters(codec="utf-8")), max_size=60).map("".join)


def borders(text: str) -> set[int]:
    found = {0}
    for match in regex.finditer(r"\X", text):
        found.add(match.end())
    return found


@settings(max_examples=500)
@given(texts)
def test_borders_are_those_of_the_regex_module(text: str) -> None:
    clusters = Clusters(text)
    expected = borders(text)
    for position in range(len(text) + 1):
        assert clusters.floor(position) == max(border for border in expected if border <= position)
        assert clusters.ceil(position) == min(border for border in expected if border >= position)
    assert {0, *(end for _, end in cluster_spans(text))} == expected


@pytest.mark.parametrize(
    "repeated", ["\U0001f1e9", FAMILY, "e\u0301", "\u0e01\u0e33", "\u0301", "\u200d", "\u4e2d", "\r\n"]
)
def test_long_runs_take_linear_time(repeated: str) -> None:
    text = repeated * (100_000 // len(repeated))
    assert Clusters(text).ceil(len(text)) == len(text)
    assert cluster_spans(text)[-1][1] == len(text)


@pytest.fixture(scope="module")
def compressors(tiny_tokenizer: Any) -> dict[str, SpecPC]:
    draft = load_model((tiny_llama(), tiny_tokenizer))
    return {
        granularity: SpecPC(draft, compression=CompressionConfig(granularity=granularity), scorer=BM25Scorer())
        for granularity in ("sentence", "word", "token")
    }


@settings(max_examples=300, deadline=None)
@given(
    st.lists(texts, min_size=1, max_size=3), texts, st.sampled_from(["sentence", "word", "token"]), st.integers(1, 60)
)
def test_any_text_at_any_budget(
    compressors: dict[str, SpecPC], passages: list[str], query: str, granularity: str, budget: int
) -> None:
    pc = compressors[granularity]
    result = pc.compress(passages, query if query.strip() else "b", max_tokens=budget)
    assert result.tokens_after <= budget
    smallest = []
    for passage in result.passages:
        text, edges, position = passage.original, borders(passage.original), 0
        for start, end in passage.kept:
            assert position <= start < end <= len(text)
            assert {start, end} <= edges
            position = end
        smallest += [text[a:b] for a, b in cluster_spans(text) if text[a:b].strip()]
    if smallest and min(pc.count_tokens(smallest)) <= budget:
        assert any(passage.kept for passage in result.passages)


def test_protected_text_is_never_torn(compressors: dict[str, SpecPC]) -> None:
    text = "One two. " * 30 + f"{FAMILY * 3} is here. " + "Three four. " * 30
    with pytest.raises(BudgetError, match="protected"):
        compressors["sentence"].compress([text], "one", max_tokens=2, protect=[FAMILY])
    kept = compressors["sentence"].compress([text], "one", max_tokens=60, protect=[FAMILY]).passages[0].text
    assert f"{FAMILY * 3} is here." in kept
