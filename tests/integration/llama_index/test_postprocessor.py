"""SpecPCPostprocessor in real LlamaIndex pipelines."""

import asyncio
import copy
import logging
import pickle
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import CompressionConfig, LoadedModel, SpecPC, SpecPCConfig
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.llama_index import SpecPCPostprocessor
from tests.conftest import DEMO, tiny_llama

QUESTION = "On what date did the Candlemas Storm come?"
FACTS = [
    "The Candlemas Storm came on 2 February 1938. It took the roof of the school. Nobody was hurt.",
    "The dairy makes four kinds of cheese. The oldest is aged for fourteen months. It is sold in the shop.",
    "The ferry sails six times a day. On Sundays it sails twice. Dogs travel free of charge.",
]


def nodes_of(texts: Any = FACTS) -> Any:
    nodes = []
    for i, text in enumerate(texts):
        node = TextNode(id_=f"node-{i}", text=text, metadata={"file_name": f"f{i}.md", "page": i}, embedding=[0.1, 0.2])
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{i}")
        node.start_char_idx, node.end_char_idx = 100, 100 + len(text)
        node.excluded_llm_metadata_keys = ["page"]
        nodes.append(NodeWithScore(node=node, score=0.9 - 0.1 * i))
    return nodes


@pytest.fixture(scope="module")
def part(smol: SpecPC) -> Any:
    return SpecPCPostprocessor(smol, max_tokens=24, on_empty="keep_best")


def test_one_output_per_input_with_everything_but_the_text_unchanged(part: Any) -> None:
    nodes = nodes_of()
    before = copy.deepcopy(nodes)
    out = part.postprocess_nodes(nodes, query_str=QUESTION)
    assert nodes == before  # inputs are not mutated
    assert [n.node.node_id for n in out] == ["node-0", "node-1", "node-2"]
    assert [n.score for n in out] == [n.score for n in nodes]
    for new, old in zip(out, nodes, strict=True):
        assert new.node is not old.node
        note = new.node.metadata.pop("specpc")
        text = new.node.get_content(MetadataMode.NONE)
        original = old.node.get_content(MetadataMode.NONE)
        assert text == "\n".join(original[a:b] for a, b in note["kept"])
        assert note["tokens_after"] < note["tokens_before"]
        assert new.node.metadata == old.node.metadata
        assert new.node.relationships == old.node.relationships
        assert new.node.embedding == old.node.embedding
        assert (new.node.start_char_idx, new.node.end_char_idx) == (old.node.start_char_idx, old.node.end_char_idx)
    assert "2 February 1938" in out[0].node.get_content()


def test_spans_are_hidden_from_the_llm_and_the_embedder(part: Any) -> None:
    out = part.postprocess_nodes(nodes_of(), query_str=QUESTION)
    for node in out:
        assert "specpc" in node.node.get_content(MetadataMode.ALL)
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "specpc" not in node.node.get_content(mode)
            assert "file_name" in node.node.get_content(mode)


def test_what_cannot_be_copied_is_shared(smol: SpecPC) -> None:
    lock = threading.Lock()
    bridge = "The bridge was opened in 1932. It is painted red."
    given = [
        NodeWithScore(node=TextNode(text=bridge, metadata={"client": lock})),
        NodeWithScore(node=IndexNode(text=bridge, index_id="x", obj=lock)),
    ]
    part = SpecPCPostprocessor(smol, max_tokens=24, on_empty="keep_best")
    plain, index = part.postprocess_nodes(given, query_str="In which year was the bridge opened?")
    assert plain.node.metadata["client"] is lock
    assert isinstance(index.node, IndexNode)
    assert index.node.obj is lock
    assert "specpc" not in given[0].node.metadata


def test_drop_leaves_out_empty_nodes_in_order(smol: SpecPC) -> None:
    out = SpecPCPostprocessor(smol, max_tokens=14).postprocess_nodes(nodes_of()[::-1], query_str=QUESTION)
    assert [n.node.node_id for n in out] == ["node-0"]


def test_any_node_type(part: Any) -> None:
    image = ImageNode(id_="image", image_url="file:///x.png")
    nodes = [
        NodeWithScore(node=IndexNode(id_="index", text=FACTS[0], index_id="other"), score=1.0),
        NodeWithScore(node=image, score=None),
        NodeWithScore(node=Document(id_="doc", text=FACTS[1]), score=0.5),
        NodeWithScore(node=Node(id_="media", text_resource=MediaResource(text=FACTS[2])), score=0.4),
        NodeWithScore(node=TextNode(id_="blank", text="  "), score=0.3),
        NodeWithScore(node=TextNode(id_="index", text=FACTS[0]), score=0.2),  # an id twice
    ]
    out = part.postprocess_nodes(nodes, query_str=QUESTION)
    assert [n.node.node_id for n in out] == ["index", "image", "doc", "media", "blank", "index"]
    assert [type(n.node) for n in out] == [type(n.node) for n in nodes]
    assert out[0].node.index_id == "other"
    assert "specpc" not in out[1].node.metadata
    assert out[1].node.image_url == image.image_url
    assert out[4].node.get_content() == "  "
    assert len(out[3].node.get_content(MetadataMode.NONE)) < len(FACTS[2])


def test_without_text_or_nodes_nothing_happens(part: Any) -> None:
    assert part.postprocess_nodes([], query_str=QUESTION) == []
    image = NodeWithScore(node=ImageNode(image_url="file:///x.png"))
    assert part.postprocess_nodes([image]) == [image]


def test_no_query_is_an_error_or_a_passthrough(smol: SpecPC, caplog: pytest.LogCaptureFixture) -> None:
    nodes = nodes_of()
    with pytest.raises(InvalidInputError, match="query must be a non-empty string"):
        SpecPCPostprocessor(smol, max_tokens=5).postprocess_nodes(nodes)
    lenient = SpecPCPostprocessor(smol, max_tokens=5, on_error="passthrough")
    with caplog.at_level(logging.WARNING):
        out = lenient.postprocess_nodes(nodes)
    assert [n.node.get_content() for n in out] == [n.node.get_content() for n in nodes]
    assert "passed 3 items on uncompressed: query must be" in caplog.text


def test_nothing_is_lost_when_the_draft_fails(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[:] = torch.nan  # harmless: not reached when nothing is drafted
        model.model.layers[0].mlp.up_proj.weight[:] = torch.nan
    part = SpecPCPostprocessor((model, tiny_tokenizer), max_tokens=5, on_error="passthrough")
    assert part.postprocess_nodes(nodes_of(), query_str=QUESTION) == nodes_of()


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"keep_ratio": 2.0}, {"keep_ratio": 0.5, "max_tokens": 5}])
def test_a_bad_budget_is_refused_at_once(options: Any) -> None:
    with pytest.raises(InvalidInputError, match="got"):
        SpecPCPostprocessor("default", **options)


def test_misspelt_or_late_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_token\n.*not permitted"):
        SpecPCPostprocessor("default", max_token=5)
    part = SpecPCPostprocessor("default", max_tokens=5)
    for field, value in (("draft", "other"), ("config", SpecPCConfig()), ("tokenizer", "other"), ("scorer", "heads")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, field, value)


def test_a_deep_copy_shares_the_engine(tiny: LoadedModel) -> None:
    part = SpecPCPostprocessor(tiny, tokenizer=str.split, max_tokens=9)
    for copied in (copy.deepcopy(part), part.model_copy(deep=True)):
        assert copied.load() is part.load()


def test_two_in_a_row_still_cite_the_original(smol: SpecPC) -> None:
    first, second = SpecPCPostprocessor(smol, max_tokens=40), SpecPCPostprocessor(smol, max_tokens=14)
    once = first.postprocess_nodes(nodes_of(), query_str=QUESTION)
    (twice,) = second.postprocess_nodes(once, query_str=QUESTION)
    note = twice.node.metadata["specpc"]
    assert twice.node.get_content(MetadataMode.NONE) == "\n".join(FACTS[0][a:b] for a, b in note["kept"])
    assert note["tokens_before"] == once[0].node.metadata["specpc"]["tokens_before"]
    again = SpecPCPostprocessor(smol, max_tokens=500).postprocess_nodes([twice], query_str=QUESTION)
    assert again[0].node.metadata["specpc"] == note  # nothing dropped, nothing forgotten


def test_a_model_is_loaded_on_first_use_only() -> None:
    part = SpecPCPostprocessor("/no/such/folder", max_tokens=5)
    assert part.draft == "/no/such/folder"
    with pytest.raises(OSError, match="no file or folder '/no/such/folder'"):
        part.postprocess_nodes(nodes_of(), query_str=QUESTION)


def test_round_trips_without_weights(embedded_model: LoadedModel) -> None:
    config, compression = SpecPCConfig(kernel_size=7), CompressionConfig(granularity="word")
    part = SpecPCPostprocessor(
        embedded_model,
        keep_ratio=0.3,
        config=config,
        compression=compression,
        on_empty="keep_best",
        protect=["1938"],
        title_keys=["page"],
    )
    expected = part.postprocess_nodes(nodes_of(), query_str=QUESTION)
    as_dict, as_json, as_bytes = part.to_dict(), part.to_json(), pickle.dumps(part)
    assert len(as_bytes) < 5_000
    assert as_dict["draft"] == "default"
    for copied in (
        SpecPCPostprocessor.from_dict(as_dict),
        SpecPCPostprocessor.from_json(as_json),
        pickle.loads(as_bytes),
    ):
        assert copied.to_dict() == as_dict
        assert copied.postprocess_nodes(nodes_of(), query_str=QUESTION) == expected
        assert copied.load().draft is embedded_model  # weights are not loaded twice


def test_what_was_an_object_must_be_given_again(tiny: LoadedModel) -> None:
    for part, field in (
        (SpecPCPostprocessor(tiny, max_tokens=9), "draft"),
        (SpecPCPostprocessor("default", tokenizer=str.split, max_tokens=9), "tokenizer"),
        (SpecPCPostprocessor("default", embedder=MockEmbedding(embed_dim=2), max_tokens=9), "embedder"),
    ):
        for copied in (pickle.loads(pickle.dumps(part)), SpecPCPostprocessor.from_dict(part.to_dict())):
            with pytest.raises(InvalidInputError, match=f"saved or rebuilt without its {field}.*{field}=..."):
                copied.postprocess_nodes(nodes_of(), query_str=QUESTION)


def test_a_shared_engine_brings_its_own_settings(smol: SpecPC) -> None:
    assert SpecPCPostprocessor(smol).load() is smol
    with pytest.raises(InvalidInputError, match="brings its own config"):
        SpecPCPostprocessor(smol, config=SpecPCConfig(kernel_size=1))


class Recorder(BaseEventHandler):
    events: list[Any] = []  # noqa: RUF012 - a pydantic field

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


def test_events_that_tracers_show(smol: SpecPC) -> None:
    recorder, debug = Recorder(), LlamaDebugHandler(print_trace_on_end=False)
    root = get_dispatcher()
    root.add_event_handler(recorder)
    try:
        part = SpecPCPostprocessor(smol, max_tokens=14, callback_manager=CallbackManager([debug]))
        out = part.postprocess_nodes(nodes_of(), query_str=QUESTION)
    finally:
        root.event_handlers.remove(recorder)
    start, end = (
        next(e for e in recorder.events if isinstance(e, kind)) for kind in (ReRankStartEvent, ReRankEndEvent)
    )
    assert len(start.nodes) == 3
    assert start.model_name == "SpecPC default"
    assert end.nodes == out
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


class EmbeddedLLM(CustomLLM):
    """The embedded model behind LlamaIndex's own base class; keeps the prompts it saw."""

    model: Any
    prompts: list[str] = []  # noqa: RUF012 - a pydantic field

    @property
    def metadata(self) -> Any:
        return LLMMetadata(context_window=8192, num_output=24)

    def complete(self, prompt: Any, formatted: bool = False, **_: Any) -> Any:
        self.prompts.append(prompt)
        tokenizer = self.model.tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = self.model.model.generate(**ids, max_new_tokens=24, do_sample=False)
        return CompletionResponse(text=tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    def stream_complete(self, prompt: Any, formatted: bool = False, **_: Any) -> NoReturn:
        raise AssertionError("not used here")


@pytest.fixture(scope="module")
def retriever() -> Any:
    texts = [(DEMO / "docs" / name).read_text() for name in ("three-storms.md", "dairy-annual-report.md")]
    documents = [Document(text=text[:3000], metadata={"title": text.splitlines()[0]}) for text in texts]
    splitter = SentenceSplitter(chunk_size=200, chunk_overlap=0, tokenizer=str.split)
    return SummaryIndex.from_documents(documents, transformations=[splitter]).as_retriever()


@pytest.fixture
def llm(embedded_model: LoadedModel) -> Iterator[Any]:
    previous = Settings.tokenizer
    Settings.tokenizer = embedded_model.tokenizer.encode
    yield EmbeddedLLM(model=embedded_model, prompts=[])
    Settings.tokenizer = previous


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_retriever_query_engine(smol: SpecPC, retriever: Any, llm: Any, mode: str) -> None:
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, node_postprocessors=[SpecPCPostprocessor(smol, max_tokens=120)]
    )
    response = engine.query(QUESTION) if mode == "sync" else asyncio.run(engine.aquery(QUESTION))
    originals = {n.node.node_id: n.node for n in retriever.retrieve(QUESTION)}
    assert 0 < len(response.source_nodes) <= len(originals)
    for found in response.source_nodes:
        original = originals[found.node.node_id]
        note = found.node.metadata["specpc"]
        assert found.node.get_content() == "\n".join(original.text[a:b] for a, b in note["kept"])
        assert found.node.metadata["title"] == original.metadata["title"]
        assert found.node.relationships == original.relationships
        assert found.node.get_content() in llm.prompts[0]
    assert "2 February 1938" in llm.prompts[0]
    assert "specpc" not in llm.prompts[0]
    assert sum(smol.count_tokens([n.node.get_content() for n in response.source_nodes])) <= 120
    assert str(response)


def test_citation_query_engine_keeps_the_spans(smol: SpecPC, retriever: Any, llm: Any) -> None:
    engine = CitationQueryEngine.from_args(
        SummaryIndex([]),
        retriever=retriever,
        llm=llm,
        citation_chunk_size=512,
        node_postprocessors=[SpecPCPostprocessor(smol, max_tokens=120)],
    )
    response = engine.query(QUESTION)
    texts = [n.node.text for n in retriever.retrieve(QUESTION)]
    assert response.source_nodes
    for found in response.source_nodes:
        cited = found.node.get_content().split("\n", 1)[1].strip()  # without "Source 1:"
        kept = found.node.metadata["specpc"]["kept"]
        assert any(cited == "\n".join(text[a:b] for a, b in kept).strip() for text in texts)
    assert "specpc" not in llm.prompts[0]


def test_two_parts_of_one_process_share_weights() -> None:
    first, second = SpecPCPostprocessor(max_tokens=9), SpecPCPostprocessor(max_tokens=99)
    assert first.load().draft is second.load().draft
    assert isinstance(first.load(), SpecPC)


def test_compress_takes_a_plain_question_too(smol: SpecPC) -> None:
    nodes = [
        NodeWithScore(node=TextNode(text=f"The bridge was opened in 193{n}. It is red. It is long.")) for n in range(4)
    ]
    part = SpecPCPostprocessor(smol, max_tokens=24)
    found, result = part.compress(nodes, "When was the bridge opened?")
    expected, _ = part.compress(nodes, QueryBundle("When was the bridge opened?"))
    assert [node.text for node in found] == [node.text for node in expected]
    assert result.query == "When was the bridge opened?"


def test_as_a_reranker_and_by_relevance(smol: SpecPC) -> None:
    given = nodes_of([FACTS[1], FACTS[2], FACTS[0]])
    kept = SpecPCPostprocessor(smol, top_n=2, order="relevance").postprocess_nodes(given, query_str=QUESTION)
    assert kept[0].node.node_id == "node-2"
    assert len(kept) == 2
    assert 1 > kept[0].score > kept[1].score > 0
    assert kept[0].score == kept[0].node.metadata["specpc"]["score"]
    in_order = SpecPCPostprocessor(smol, top_n=2).postprocess_nodes(given, query_str=QUESTION)
    assert in_order[-1].node.node_id == "node-2"
    assert in_order[-1].score == given[2].score  # the retriever's stays
    (best,) = SpecPCPostprocessor(smol, recall=0.3).postprocess_nodes(given, query_str=QUESTION)
    assert best.node.get_content() == "The Candlemas Storm came on 2 February 1938."
    assert SpecPCPostprocessor(smol, min_relevance=1.0).postprocess_nodes(given, query_str=QUESTION) == []
    with pytest.raises(InvalidInputError, match=r"recall must be in \(0, 1\]; got 2"):
        SpecPCPostprocessor(smol, recall=2)
