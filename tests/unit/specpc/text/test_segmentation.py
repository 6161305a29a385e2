import itertools
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.text.blocks import MAX_UNIT_CHARACTERS
from draftapprox_integrations.specpc.text.segmentation import (
    assign_tokens,
    join_spans,
    merge_tokens,
    segment,
    sentences,
    words,
)

texts = st.text(
    st.one_of(
        st.sampled_from(list("ab A.!?\n\t#-|1\u3002\u4e2d\u05d0\U0001f600\u200d\r\x85\u2028\x1c")), st.characters()
    ),
    max_size=200,
)


def pieces(text: Any) -> Any:
    return [text[a:b] for a, b in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("Dr. Smith met J. R. Jones at 3.15 p.m. today.", ["Dr. Smith met J. R. Jones at 3.15 p.m. today."]),
        ("It cost 3.50 dollars. Then e.g. this.", ["It cost 3.50 dollars.", "Then e.g. this."]),
        ("\u4e00\u4e8c\u3002\u4e09\u56db\uff01\u4e94", ["\u4e00\u4e8c\u3002", "\u4e09\u56db\uff01", "\u4e94"]),
        ("\u0645\u0627\u061f \u0646\u0639\u0645.", ["\u0645\u0627\u061f", "\u0646\u0639\u0645."]),
        ("# Title\nText goes\non here. More.", ["# Title", "Text goes\non here.", "More."]),
        ("- one\n- two\n  and more\n1. three", ["- one", "- two\n  and more", "1. three"]),
        ("| a | b |\n|---|---|\n| c. D | d |\n\nEnd", ["| a | b |\n|---|---|", "| c. D | d |", "End"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_sentences(text: str, expected: Any) -> None:
    assert pieces(text) == expected


@given(texts, st.sampled_from(["sentence", "word"]))
def test_units_cover_all_but_white_space_in_order(text: Any, granularity: Any) -> None:
    (units,) = [[(unit.start, unit.end) for unit in group] for group in segment([text], granularity)]
    position = 0
    for start, end in units:
        assert position <= start < end <= len(text)
        assert not text[position:start].strip()
        assert not text[start].isspace() or len(regex.match(r"\X", text, pos=start)[0]) > 1
        assert not text[end - 1].isspace()
        position = end
    assert not text[position:].strip()


def test_text_without_any_full_stop_is_cut_between_words() -> None:
    text = "word " * 5000
    units = sentences(text)
    assert max(end - start for start, end in units) <= MAX_UNIT_CHARACTERS
    assert all(text[start:end].split()[0] == "word" and text[start:end].endswith("word") for start, end in units)
    assert max(end - start for start, end in sentences("x" * 5000)) <= MAX_UNIT_CHARACTERS


def test_tokens_of_one_character_are_one_unit() -> None:
    # "a", three byte tokens of one emoji, "b"
    assert merge_tokens("a\U0001f600b", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]) == [(0, 1), (1, 2), (2, 3)]


@given(texts)
def test_joined_spans_leave_gaps_only_where_text_was_dropped(text: Any) -> None:
    units = words(text)[::2]
    joined = join_spans(text, units)
    for (_, end), (start, _) in itertools.pairwise(joined):
        assert text[end:start].strip()
    assert {c for a, b in units for c in range(a, b)} <= {c for a, b in joined for c in range(a, b)}


@given(texts, st.integers(1, 7))
def test_each_token_belongs_to_the_unit_it_overlaps_most(text: Any, width: Any) -> None:
    units = sentences(text)
    tokens = [(start, min(start + width, len(text))) for start in range(0, len(text), width)]
    for (start, end), owner in zip(tokens, assign_tokens(units, tokens), strict=True):
        overlaps = [min(end, b) - max(start, a) for a, b in units]
        if owner == -1:
            assert all(overlap <= 0 for overlap in overlaps)
        else:
            assert overlaps[owner] == max(overlaps) > 0
