"""Every retrieval part of both frameworks works through a service's address, and gives what it gives here."""

import pickle
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError, ServiceUnavailableError
from draftapprox_integrations.langchain import SpecPCCompressor, SpecPCMiddleware, rag_chain
from draftapprox_integrations.llama_index import SpecPCIngestion, SpecPCPostprocessor
from draftapprox_integrations.specpc.remote import RemoteDraft
from tests.helpers.service import Running, running
from tests.integration.serving.conftest import QUERY, TEXTS

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def documents() -> list[Document]:
    return [Document(text, id=str(i), metadata={"source": f"/d/{i}.md", "score": 0.5}) for i, text in enumerate(TEXTS)]


def nodes() -> list[NodeWithScore]:
    found = [TextNode(text=text, id_=str(i), metadata={"title": f"Part {i}"}) for i, text in enumerate(TEXTS)]
    return [NodeWithScore(node=node, score=0.5) for node in found]


async def test_langchain_compressor(local: SpecPC, service: Running) -> None:
    for settings in ({"max_tokens": 40}, {"recall": 0.5, "order": "relevance", "protect": ["museum"]}):
        here, there = SpecPCCompressor(local, **settings), SpecPCCompressor(service.url, **settings)
        expected = here.compress_documents(documents(), QUERY)
        again = loads(dumps(there), allowed_objects=[SpecPCCompressor], valid_namespaces=["draftapprox_integrations"])
        for part in (there, pickle.loads(pickle.dumps(there)), again):
            assert part.draft == service.url
            assert part.compress_documents(documents(), QUERY) == expected
        assert await there.acompress_documents(documents(), QUERY) == expected
        assert there == SpecPCCompressor(SpecPC(service.url), **settings)
    with pytest.raises(InvalidInputError, match="ingest keeps the keys"):
        there.ingest(documents())


async def test_llama_index_postprocessor(local: SpecPC, service: Running) -> None:
    here, there = SpecPCPostprocessor(local, max_tokens=40), SpecPCPostprocessor(service.url, max_tokens=40)
    expected = here.postprocess_nodes(nodes(), query_str=QUERY)
    for part in (there, SpecPCPostprocessor.from_dict(there.to_dict()), pickle.loads(pickle.dumps(there))):
        assert part.postprocess_nodes(nodes(), query_str=QUERY) == expected
    assert await there.apostprocess_nodes(nodes(), query_str=QUERY) == expected


@pytest.mark.embedded
def test_llama_index_ingestion(embedded_model: LoadedModel) -> None:
    with running(SpecPC(embedded_model)) as service:
        postprocessor = SpecPCPostprocessor(service.url, max_tokens=30)
        read = [node.node for node in nodes()]
        assert SpecPCIngestion(postprocessor=postprocessor)(read) == read
        assert postprocessor.ingest(read) == 0  # the service has them
        assert postprocessor.compress(nodes(), QUERY)[1].draft_tokens < 20


async def test_langchain_middleware(local: SpecPC, service: Running) -> None:
    call = {"name": "search", "args": {}, "id": "1"}
    messages = [
        HumanMessage(QUERY),
        AIMessage("", tool_calls=[call]),
        ToolMessage(" ".join(TEXTS), tool_call_id="1", name="search"),
    ]
    settings = {"max_tokens": 30, "trigger_tokens": 10}
    here, there = SpecPCMiddleware(local, **settings), SpecPCMiddleware(service.url, **settings)
    expected = here.compress(messages)
    assert expected != messages
    assert there.compress(messages) == expected
    assert pickle.loads(pickle.dumps(there)).compress(messages) == expected


def test_a_rag_chain(service: Running) -> None:
    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return documents()

    chain = rag_chain(Retriever(), FakeListChatModel(responses=["1932"]), SpecPCCompressor(service.url, max_tokens=30))
    found = chain.invoke(QUERY)
    assert found["answer"] == "1932"
    assert sum(len(document.page_content) for document in found["context"]) < len("".join(TEXTS))


def test_a_service_that_is_not_there_can_be_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    nobody = RemoteDraft("http://127.0.0.1:9", patience=0.1)
    assert SpecPCCompressor(nobody, on_error="passthrough").compress_documents(documents(), QUERY) == documents()
    assert "no service answers at http://127.0.0.1:9" in caplog.text
    with pytest.raises(ServiceUnavailableError):
        SpecPCCompressor(nobody).compress_documents(documents(), QUERY)


def test_settings_that_would_have_no_effect_are_refused_at_once(service: Running) -> None:
    for part in (SpecPCCompressor, SpecPCPostprocessor, SpecPCMiddleware):
        with pytest.raises(InvalidInputError, match="^compression, store: a service has its own"):
            part(service.url, compression={"granularity": "word"}, store="p.db", max_tokens=9)
