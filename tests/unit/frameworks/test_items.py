"""Retrieval parts: spans of text that was compressed twice."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.frameworks.items import compose_spans


@given(st.data())
def test_spans_of_a_second_compression_point_into_the_original(data: Any) -> None:
    original = data.draw(st.text(min_size=1, max_size=40))
    separator = data.draw(st.sampled_from(["", " ", "..."]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(original)), min_size=2, max_size=8)))
    first = list(zip(cuts[::2], cuts[1::2], strict=False))
    text = separator.join(original[a:b] for a, b in first)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    second = list(zip(cuts[::2], cuts[1::2], strict=False))
    found = compose_spans(first, len(text), second)
    # each kept character that is not a separator's, and no other
    source = []
    for index, (a, b) in enumerate(first):
        source += ([None] * len(separator) if index else []) + list(range(a, b))
    expected = [source[i] for a, b in second for i in range(a, b) if source[i] is not None]
    assert sorted(i for a, b in found for i in range(a, b)) == sorted(expected)
