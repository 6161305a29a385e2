"""Both frameworks' parts side by side: the same parameters, in the same order, with the same defaults."""

import inspect
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from draftapprox_integrations import LoadedModel, SpecPC, langchain, llama_index
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.specpc.scoring.heads import HeadSet

RETRIEVAL = {
    "draft": "default",
    "max_tokens": None,
    "keep_ratio": None,
    "recall": None,
    "min_relevance": None,
    "top_n": None,
    "order": "input",
    "config": None,
    "compression": None,
    "scorer": "fused",
    "tokenizer": None,
    "embedder": None,
    "store": None,
    "on_empty": "drop",
    "on_error": "raise",
    "protect": (),
    "title_keys": ("title", "file_name", "source"),
    "metadata_key": "specpc",
}
LLM = {
    "model": "default",
    "draft": "self",
    "method": None,
    "config": None,
    "positions": "renumber",
    "max_tokens": 256,
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "seed": None,
    "stop": None,
    "timeout": None,
    "generate_kwargs": None,
    "max_batch_size": 8,
    "loading": None,
}


def parameters(part: Any) -> Any:
    """The part's own parameters with their defaults: what its constructor names."""
    found = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters
    named = {name: parameter.default for name, parameter in found.items() if name != "self"}
    return {name: default for name, default in named.items() if name not in ("fields", "options", "others")}


def test_retrieval_parts() -> None:
    compressor, postprocessor = parameters(langchain.SpecPCCompressor), parameters(llama_index.SpecPCPostprocessor)
    assert list(compressor.items()) == list(postprocessor.items()) == list(RETRIEVAL.items())
    middleware = parameters(langchain.SpecPCMiddleware)
    alone = {"trigger_tokens": 0, "tools": None, "cache_size": 256}
    # A tool result has no metadata and always stays, where it is.
    without_meaning = ("on_empty", "title_keys", "top_n", "order")
    shared = {name: default for name, default in RETRIEVAL.items() if name not in without_meaning}
    assert list(middleware.items()) == list((shared | alone).items())


@pytest.mark.parametrize("method", ["load", "compress", "acompress", "ingest"])
def test_retrieval_parts_have_the_same_methods(method: str) -> None:
    for part in (langchain.SpecPCCompressor, llama_index.SpecPCPostprocessor):
        assert inspect.getdoc(getattr(part, method))


async def test_both_give_the_same_texts_notes_and_result(tiny: LoadedModel) -> None:
    texts = ["The mill was built in 1821. It is old.", "", "A bridge. It is red and long. It was opened in 1932."]
    metadata = [{"source": "/docs/mill.md"}, {}, {"title": "The bridge", "nested": {"page": 3}}]
    question, settings = "What colour is the bridge?", {"max_tokens": 30}
    documents = [Document(text, metadata=data) for text, data in zip(texts, metadata, strict=True)]
    nodes = [NodeWithScore(node=TextNode(text=text, metadata=data)) for text, data in zip(texts, metadata, strict=True)]
    compressor = langchain.SpecPCCompressor(tiny, **settings)
    postprocessor = llama_index.SpecPCPostprocessor(tiny, **settings)

    kept_documents, first = compressor.compress(documents, question)
    kept_nodes, second = postprocessor.compress(nodes, question)
    assert kept_documents == compressor.compress_documents(documents, question)
    assert [node.node.get_content() for node in kept_nodes] == [document.page_content for document in kept_documents]
    assert first is not None
    assert second is not None
    assert first.passages == second.passages
    assert [passage.title for passage in first.passages] == ["mill.md", "The bridge"]
    assert first.query == second.query == question
    assert first.tokens_after <= 30 < first.tokens_before
    assert "The bridge" in first.to_html()
    assert first._repr_html_().count("<details") == 2
    notes = [document.metadata.get("specpc") for document in kept_documents]
    assert notes == [node.node.metadata.get("specpc") for node in kept_nodes]
    scores = [passage.score for passage in first.passages if passage.text]
    assert [note["score"] for note in notes if note] == scores

    documents_again, first_again = await compressor.acompress(documents, question)
    assert documents_again == kept_documents
    assert first_again is not None
    assert first_again.passages == first.passages
    nodes_again, result_again = await postprocessor.acompress(nodes, question)
    assert [node.node.get_content() for node in nodes_again] == [node.node.get_content() for node in kept_nodes]
    assert result_again is not None
    assert result_again.passages == second.passages

    for part, nothing in ((compressor, [Document("")]), (postprocessor, [NodeWithScore(node=TextNode(text=""))])):
        kept, result = part.compress(nothing, question)
        assert len(kept) == 1
        assert result is None


def test_both_tell_the_progress_of_ingest(tiny: LoadedModel) -> None:
    heads = HeadSet(tiny.name, fingerprint(tiny.model), ((2, 1), (0, 3)))
    told: list[tuple[int, int]] = []
    for part, items in (
        (langchain.SpecPCCompressor, [Document("The mill is old."), Document(" ")]),
        (llama_index.SpecPCPostprocessor, [TextNode(text="The mill is old."), TextNode(text=" ")]),
    ):
        reader = part(SpecPC(tiny, scorer="heads", heads=heads))
        assert reader.ingest(items, progress=lambda *counts: told.append(counts)) > 0
    assert told == [(1, 1), (1, 1)]


def test_llm_parts() -> None:
    for part in (langchain.ChatSpecKV, langchain.SpecKVLLM, llama_index.SpecKVLLM):
        assert list(parameters(part).items()) == list(LLM.items())


def test_rag_helpers() -> None:
    chain, engine = parameters(langchain.rag_chain), parameters(llama_index.rag_query_engine)
    assert list(chain) == list(engine) == ["retriever", "llm", "compressor", "prompt"]
    assert chain == engine


@pytest.mark.parametrize(
    ("part", "documented"),
    [
        (langchain.SpecPCCompressor, RETRIEVAL),
        (llama_index.SpecPCPostprocessor, RETRIEVAL),
        (langchain.ChatSpecKV, LLM),
        (langchain.SpecKVLLM, LLM),
        (llama_index.SpecKVLLM, LLM),
    ],
)
def test_help_shows_them_first_and_they_are_fields(part: Any, documented: Any) -> None:
    shown = list(inspect.signature(part).parameters)
    assert shown[: len(documented)] == list(documented)
    assert documented.keys() <= part.model_fields.keys()
    for name in shown:  # the frameworks' own fields are named too, none hides behind **fields
        assert name in part.model_fields


@pytest.mark.parametrize("part", [langchain.ChatSpecKV, langchain.SpecKVLLM, llama_index.SpecKVLLM])
def test_none_stands_for_the_default_length_and_temperature(part: Any) -> None:
    given = part("default", max_tokens=None, temperature=None)
    assert (given.max_tokens, given.temperature) == (256, 0.0)


def test_none_in_a_call_stands_for_the_field(tiny: LoadedModel) -> None:
    llm = langchain.SpecKVLLM(tiny, max_tokens=5)
    assert llm.invoke("The mill", max_tokens=None, temperature=None) == llm.invoke("The mill")
    other = llama_index.SpecKVLLM(tiny, max_tokens=5)
    assert other.complete("The mill", max_tokens=None, temperature=None).text == other.complete("The mill").text
