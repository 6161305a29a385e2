"""Retrieval parts: spans of text that was compressed twice, copies of documents and nodes."""

import sqlite3
import sys
import threading
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode

from draftapprox_integrations.frameworks.items import compose_spans, copy_model, title_of


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


UNCOPYABLE = {
    "lock": threading.Lock(),
    "connection": sqlite3.connect(":memory:"),
    "file": sys.__stdout__,
    "generator": (number for number in range(3)),
    "module": pytest,
}


@pytest.mark.parametrize("name", UNCOPYABLE)
def test_what_cannot_be_copied_is_shared_and_the_rest_copied(name: str) -> None:
    value = UNCOPYABLE[name]
    metadata = {"plain": value, "deep": {"list": [value, ["a"]], "tuple": (value, ["b"])}, "other": ["c"]}
    for item in (Document("text", metadata=metadata), TextNode(text="text", metadata=metadata)):
        copied = copy_model(item)
        assert copied.metadata is not item.metadata
        assert copied.metadata["plain"] is value
        assert copied.metadata["deep"]["list"][0] is value
        assert copied.metadata["deep"]["tuple"][0] is value
        for found, original in (
            (copied.metadata["deep"]["list"][1], item.metadata["deep"]["list"][1]),
            (copied.metadata["deep"]["tuple"][1], item.metadata["deep"]["tuple"][1]),
            (copied.metadata["other"], item.metadata["other"]),
        ):
            assert found == original
            assert found is not original


def test_a_copy_is_equal_and_independent() -> None:
    node = IndexNode(text="text", index_id="i", obj=TextNode(text="inner"), embedding=[1.0])
    node.metadata = {"a": [1]}
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="source", metadata={"b": [2]})
    copied = copy_model(node, shared={"obj"})
    assert copied == node
    assert copied.obj is node.obj
    copied.metadata["a"].append(3)
    copied.relationships[NodeRelationship.SOURCE].metadata["b"].append(3)
    copied.excluded_llm_metadata_keys.append("x")
    copied.set_content("other")
    assert node.metadata == {"a": [1]}
    assert node.relationships[NodeRelationship.SOURCE].metadata == {"b": [2]}
    assert node.excluded_llm_metadata_keys == []
    assert node.text == "text"


@pytest.mark.parametrize(
    ("metadata", "title"),
    [
        ({"title": "Storms", "file_name": "a.md", "source": "/x/b.md"}, "Storms"),
        ({"title": " ", "file_name": "a.md", "source": "/x/b.md"}, "a.md"),
        ({"title": None, "source": "/home/me/notes/b.md"}, "b.md"),
        ({"source": "notes/old/b.md"}, "b.md"),
        ({"source": "../notes/README"}, "README"),
        ({"source": "~/notes/README"}, "README"),
        ({"source": "C:\\notes\\b.docx"}, "b.docx"),
        ({"source": PurePosixPath("notes/b.md")}, "b.md"),
        ({"source": "b.md"}, "b.md"),
        ({"source": "/home/me/notes/"}, "/home/me/notes/"),  # a folder is no title, but better than nothing
        ({"source": "https://example.org/a/b.html"}, "https://example.org/a/b.html"),
        ({"source": "The AC/DC story"}, "The AC/DC story"),
        ({"title": "either/or.txt"}, "either/or.txt"),  # only under "source" is it a path
        ({"source": 3}, None),
        ({}, None),
    ],
)
def test_titles(metadata: Any, title: Any) -> None:
    assert title_of(metadata, ("title", "file_name", "source")) == title
