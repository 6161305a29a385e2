"""SpecPCCompressor in real LangChain pipelines."""

import copy
import pickle
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_text_splitters import RecursiveCharacterTextSplitter

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.cli.documents import read_folder, search
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import SpecPCCompressor
from draftapprox_integrations.langchain.compressor import _retriever_score
from tests.conftest import DEMO

QUESTION = "On what date did the Candlemas Storm come?"
FACTS = [
    "The Candlemas Storm came on 2 February 1938. It took the roof of the school. Nobody was hurt.",
    "The dairy makes four kinds of cheese. The oldest is aged for fourteen months. It is sold in the shop.",
    "The ferry sails six times a day. On Sundays it sails twice. Dogs travel free of charge.",
]


def documents(texts: Any = FACTS) -> Any:
    return [
        Document(id=f"doc-{i}", page_content=text, metadata={"source": f"f{i}.md", "nested": {"page": i}})
        for i, text in enumerate(texts)
    ]


class Spans(BaseCallbackHandler):
    def __init__(self) -> None:
        self.started: dict[Any, Any] = {}
        self.parents: dict[Any, Any] = {}
        self.outputs: dict[Any, Any] = {}

    def _start(
        self, serialized: Any, inputs: Any, *, run_id: Any, parent_run_id: Any = None, name: Any = None, **_: Any
    ) -> None:
        self.started[run_id], self.parents[run_id] = name, parent_run_id

    on_chain_start = on_retriever_start = _start  # type: ignore[assignment]

    def _end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        self.outputs[run_id] = outputs

    on_chain_end = on_retriever_end = _end  # type: ignore[assignment]

    def run_of(self, name: Any) -> Any:
        return next(run for run, started in self.started.items() if started == name)


def test_one_output_per_input_with_everything_but_the_text_unchanged(smol: SpecPC) -> None:
    inputs = documents()
    before = copy.deepcopy(inputs)
    out = SpecPCCompressor(smol, max_tokens=24, on_empty="keep_best").compress_documents(inputs, QUESTION)
    assert inputs == before
    assert [d.id for d in out] == ["doc-0", "doc-1", "doc-2"]
    for new, old in zip(out, inputs, strict=True):
        note = new.metadata.pop("specpc")
        assert new.metadata.pop("relevance_score") == note["score"]
        assert new.page_content == "\n".join(old.page_content[a:b] for a, b in note["kept"])
        assert new.metadata == old.metadata
        assert new.metadata["nested"] is not old.metadata["nested"]
    assert "2 February 1938" in out[0].page_content


def test_drop_leaves_out_empty_documents(smol: SpecPC) -> None:
    out = SpecPCCompressor(smol, max_tokens=14).compress_documents(documents()[::-1], QUESTION)
    assert [d.id for d in out] == ["doc-0"]
    assert SpecPCCompressor(smol, max_tokens=14).compress_documents([], QUESTION) == []


async def test_every_way_to_call_it_gives_the_same(smol: SpecPC) -> None:
    part = SpecPCCompressor(smol, keep_ratio=0.3)
    request = {"documents": documents(), "query": QUESTION}
    expected = part.compress_documents(documents(), QUESTION)
    assert part.invoke(request) == expected
    assert await part.ainvoke(request) == expected
    assert await part.acompress_documents(documents(), QUESTION) == expected
    assert part.batch([request, request]) == [expected, expected]
    assert list(part.stream(request)) == [expected]
    assert (RunnablePassthrough() | part).invoke(request) == expected


def test_compress_also_returns_the_result_and_is_a_span(smol: SpecPC) -> None:
    part, spans = SpecPCCompressor(smol, max_tokens=24), Spans()
    found, result = part.compress(documents(), QUESTION, [spans])
    assert found == part.compress_documents(documents(), QUESTION)
    assert result is not None
    assert [passage.title for passage in result.passages] == ["f0.md", "f1.md", "f2.md"]
    assert found[0].metadata["specpc"]["score"] == result.passages[0].score
    assert spans.outputs[spans.run_of("SpecPCCompressor")] == found
    with pytest.raises(InvalidInputError, match=r"documents\[0\] must be a Document; got str"):
        part.compress(["text"], QUESTION)


class Bm25(BaseRetriever):
    """The demo documents through the project's own BM25 search."""

    passages: list[Any]
    k: int = 8

    def _get_relevant_documents(self, query: Any, *, run_manager: Any) -> Any:
        found = search(self.passages, query, self.k)
        return [
            Document(id=str(self.passages.index(p)), page_content=p.text, metadata={"title": p.title, "source": p.file})
            for p in found
        ]


@pytest.fixture(scope="module")
def retriever() -> Any:
    return Bm25(passages=read_folder(DEMO / "docs"))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_contextual_compression_retriever(smol: SpecPC, retriever: Any, mode: str) -> None:
    part = SpecPCCompressor(smol, max_tokens=150)
    compressed = ContextualCompressionRetriever(base_compressor=part, base_retriever=retriever)
    spans = Spans()
    config = {"callbacks": [spans]}
    found = compressed.invoke(QUESTION, config) if mode == "sync" else await compressed.ainvoke(QUESTION, config)
    plain = {d.id: d for d in retriever.invoke(QUESTION)}
    assert [d.id for d in found] == [i for i in plain if i in {d.id for d in found}]  # the retriever's order
    for document in found:
        original = plain[document.id]
        kept = document.metadata["specpc"]["kept"]
        assert document.page_content == "\n".join(original.page_content[a:b] for a, b in kept)
        added = {"specpc": document.metadata["specpc"], "relevance_score": document.metadata["specpc"]["score"]}
        assert document.metadata == original.metadata | added
    assert any("2 February 1938" in d.page_content for d in found)
    assert sum(smol.count_tokens([d.page_content for d in found])) <= 150
    run = spans.run_of("SpecPCCompressor")  # a span of its own, child of the retriever's
    assert spans.started[spans.parents[run]] == "ContextualCompressionRetriever"
    assert spans.outputs[run] == found


def test_a_chain_reads_the_compressed_context(smol: SpecPC, embedded_model: LoadedModel, retriever: Any) -> None:
    prompts = []

    def generate(value: Any) -> Any:
        prompts.append(value.to_messages()[0].content)
        messages = [{"role": "user", "content": value.to_messages()[0].content}]
        text = embedded_model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = embedded_model.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = embedded_model.model.generate(**ids, max_new_tokens=24, do_sample=False)
        return embedded_model.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    compressed = ContextualCompressionRetriever(
        base_compressor=SpecPCCompressor(smol, max_tokens=150), base_retriever=retriever
    )
    chain = (
        {
            "context": compressed | (lambda docs: "\n\n".join(d.page_content for d in docs)),
            "question": RunnablePassthrough(),
        }
        | ChatPromptTemplate.from_template(
            "Use the context to answer the question in one sentence.\n\nContext:\n{context}\n\nQuestion: {question}"
        )
        | RunnableLambda(generate)
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION)
    (prompt,) = prompts
    assert "The Candlemas Storm came on 2 February 1938." in " ".join(prompt.split())
    assert smol.count_tokens([prompt])[0] < 200


def test_in_a_pipeline_of_compressors(smol: SpecPC) -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[SpecPCCompressor(smol, max_tokens=40), SpecPCCompressor(smol, max_tokens=14)]
    )
    assert [d.id for d in pipeline.compress_documents(documents(), QUESTION)] == ["doc-0"]


def test_errors_are_raised_or_passed_through(smol: SpecPC) -> None:
    with pytest.raises(InvalidInputError, match="query must be"):
        SpecPCCompressor(smol, max_tokens=9).compress_documents(documents(), "")
    lenient = SpecPCCompressor(smol, max_tokens=9, on_error="passthrough")
    assert lenient.compress_documents(documents(), "") == documents()
    with pytest.raises(InvalidInputError, match="keep_ratio must be in"):
        SpecPCCompressor(smol, keep_ratio=7)


def test_misspelt_settings_and_wrong_input_are_refused(smol: SpecPC) -> None:
    with pytest.raises(ValueError, match="max_token"):
        SpecPCCompressor(smol, max_token=5)
    part = SpecPCCompressor(smol, max_tokens=5)
    for wrong in ({"documents": [], "question": "?"}, "text", {"documents": ["text"], "query": "?"}):
        with pytest.raises(InvalidInputError, match="must be"):
            part.invoke(wrong)
    with pytest.raises(InvalidInputError, match="not to the call"):
        part.bind(max_tokens=40).invoke({"documents": documents(), "query": QUESTION})


def test_pickles_without_weights(smol: SpecPC) -> None:
    part = SpecPCCompressor(smol, max_tokens=14, protect=["ferry"])
    data = pickle.dumps(part)
    assert len(data) < 5_000
    copied = pickle.loads(data)
    assert copied == part
    assert copied.compress_documents(documents(), QUESTION) == part.compress_documents(documents(), QUESTION)
    assert copied.load().draft is smol.draft


def test_relevance_scores(smol: SpecPC) -> None:
    part = SpecPCCompressor(smol, max_tokens=40, on_empty="keep_best")
    scores = [document.metadata["relevance_score"] for document in part.compress_documents(documents(), QUESTION)]
    assert max(scores) == scores[0]
    scored = documents()
    for document, score in zip(scored, (0.1, 0.9, 0.5), strict=True):
        document.metadata["relevance_score"] = score
    kept = part.compress_documents(scored, QUESTION)
    assert [document.metadata["relevance_score"] for document in kept] == [0.1, 0.9, 0.5]  # a reranker's stays
    again = SpecPCCompressor(smol, max_tokens=30, on_empty="keep_best").compress_documents(kept, QUESTION)
    assert [document.metadata["relevance_score"] for document in again] == [0.1, 0.9, 0.5]
    whole = SpecPCCompressor(smol, max_tokens=500).compress_documents(documents(), QUESTION)
    assert not any("relevance_score" in document.metadata for document in whole)  # all fitted: nothing was scored


def test_as_a_reranker_and_by_relevance(smol: SpecPC) -> None:
    given = [*documents()[1:], Document(page_content="", metadata={"page": 1}), documents()[0]]
    part = SpecPCCompressor(smol, top_n=2, order="relevance")
    kept = part.compress_documents(given, QUESTION)
    assert kept[0].page_content == FACTS[0]  # the relevant one first, all of it: nothing limits the tokens
    assert len(kept) == 3
    assert kept[2] == given[2]  # without text, so last and unchanged
    scores = [document.metadata["relevance_score"] for document in kept[:2]]
    assert 1 > scores[0] > scores[1] > 0
    scored = documents()
    scored[0].metadata["relevance_score"] = 0.01
    reranked = part.compress_documents(scored, QUESTION)[0].metadata["relevance_score"]
    assert reranked == pytest.approx(scores[0], abs=1e-4)  # not the 0.01: it is the reranker
    some = SpecPCCompressor(smol, recall=0.5).compress_documents(given, QUESTION)
    assert "The Candlemas Storm came on 2 February 1938." in some[-1].page_content
    assert sum(len(document.page_content) for document in some) < len("".join(FACTS)) / 2
    assert SpecPCCompressor(smol, min_relevance=1.0).compress_documents(documents(), QUESTION) == []
    all_of_them = SpecPCCompressor(smol, min_relevance=1.0, on_empty="keep_best")
    assert len(all_of_them.compress_documents(documents(), QUESTION)) == 3


def test_spans_of_a_compressed_text_that_was_split(smol: SpecPC) -> None:
    original = " ".join(FACTS)
    (once,) = SpecPCCompressor(smol, max_tokens=60).compress_documents([Document(original)], QUESTION)
    assert once.page_content != original
    splitter = RecursiveCharacterTextSplitter(chunk_size=70, chunk_overlap=0)
    again = SpecPCCompressor(smol, max_tokens=9)
    for child in splitter.split_documents([once]):
        assert child.metadata["specpc"] == once.metadata["specpc"]  # inherited: about another text
        for document in again.compress_documents([child], QUESTION):
            note = document.metadata["specpc"]
            assert "\n".join(child.page_content[a:b] for a, b in note["kept"]) == document.page_content
            assert note["tokens_before"] < once.metadata["specpc"]["tokens_before"]
    (twice,) = again.compress_documents([once], QUESTION)  # whole: spans of the original
    assert "\n".join(original[a:b] for a, b in twice.metadata["specpc"]["kept"]) == twice.page_content


@pytest.mark.parametrize(
    "note", ["kept", None, {"kept": [[0, 5]], "score": 1.0, "tokens_before": 3}, {"fingerprint": 1}]
)
def test_a_note_of_somebody_else_is_replaced(smol: SpecPC, note: Any) -> None:
    given = Document(FACTS[0], metadata={"specpc": note})
    (document,) = SpecPCCompressor(smol, max_tokens=14).compress_documents([given], QUESTION)
    spans = document.metadata["specpc"]["kept"]
    assert "\n".join(FACTS[0][a:b] for a, b in spans) == document.page_content


NUMBERS = [
    np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).half(),
    Fraction(1, 2),
]  # fmt: skip


@pytest.mark.parametrize("value", [*NUMBERS, np.int64(3), np.array(3), torch.tensor(3), 3])
@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_scores_as_rerankers_leave_them(value: Any, key: str) -> None:
    found = _retriever_score(Document("text", metadata={key: value}))
    assert type(found) is float
    assert found == float(value)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), torch.tensor(True), float("nan"), np.float32("nan"), "0.5", None, [0.5], np.array([0.5])],
)
def test_what_is_no_score(value: Any) -> None:
    assert _retriever_score(Document("text", metadata={"relevance_score": value})) is None
    assert _retriever_score(Document("text", metadata={"relevance_score": value, "score": 0.25})) == 0.25


def test_a_score_counts_the_same_in_every_type(smol: SpecPC) -> None:
    def kept(kind: Any) -> Any:
        texts = [f"{name} speaks of rivers and stones today." for name in ("Alpha", "Gamma", "Omega")]
        given = [
            Document(text, metadata={"relevance_score": kind(score)})
            for text, score in zip(texts, (0.01, 0.99, 0.02), strict=True)
        ]
        found = SpecPCCompressor(smol, max_tokens=9).compress_documents(given, "Who speaks of rivers?")
        return [document.page_content for document in found]

    assert kept(float) == kept(np.float32) == kept(torch.tensor) == kept(np.array)


def test_metadata_that_cannot_be_copied_passes(smol: SpecPC) -> None:
    lock = threading.Lock()
    given = [*documents(), Document("The bridge was opened in 1932. It is red.", metadata={"client": lock})]
    kept = SpecPCCompressor(smol, max_tokens=12, on_empty="keep_best").compress_documents(given, "When was it opened?")
    assert kept[-1].metadata["client"] is lock
    assert "specpc" not in given[-1].metadata


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_saved_the_langchain_way(smol: SpecPC) -> None:
    def again(part: Any) -> Any:
        return loads(dumps(part), allowed_objects=[SpecPCCompressor], valid_namespaces=["draftapprox_integrations"])

    settings: dict[str, Any] = {
        "compression": {"keep_context": 1},
        "config": {"max_capacity_prompt": 99},
        "title_keys": ["source"],
    }
    part = SpecPCCompressor("default", keep_ratio=0.3, protect=["ferry"], on_empty="keep_best", **settings)
    assert again(part) == part
    assert again(part).compress_documents(documents(), QUESTION) == part.compress_documents(documents(), QUESTION)
    for field, given in (("scorer", Longest()), ("embedder", lambda texts: [[1.0]] * len(texts)), ("tokenizer", len)):
        part = again(SpecPCCompressor("default", max_tokens=9, **{field: given}))
        with pytest.raises(InvalidInputError, match=f"rebuilt without its {field}, which was an object"):
            part.compress_documents(documents(), QUESTION)


class Longest:
    """A scorer of one's own."""

    def score(self, query: Any, passages: Any, sentences: Any) -> Any:
        return [torch.tensor([float(len(sentence.text)) for sentence in group]) for group in sentences]


def test_a_scorer_of_ones_own(smol: SpecPC) -> None:
    part = SpecPCCompressor(smol.draft, max_tokens=20, scorer=Longest())
    assert part.scorer == "object:Longest"
    (kept,) = part.compress_documents(documents(), QUESTION)
    assert kept.page_content == max((s for text in FACTS for s in text.split(". ")), key=len).rstrip(".") + "."


def test_names_in_graphs_and_schemas() -> None:
    part = SpecPCCompressor(max_tokens=9)
    assert part.get_name() == "SpecPCCompressor"
    schema = part.get_input_jsonschema()
    assert set(schema["$defs"]["CompressorInput"]["properties"]) == {"documents", "query"}
    assert part.model_dump()["draft"] == "default"


def test_ingest_wants_documents(smol: SpecPC) -> None:
    for given in (["a text"], Document("one alone")):
        with pytest.raises(InvalidInputError, match="ingest takes a list of LangChain documents"):
            SpecPCCompressor(smol).ingest(given)
