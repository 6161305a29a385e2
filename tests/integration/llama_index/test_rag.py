"""rag_query_engine: retrieve, compress, ask."""

from typing import Any

from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from draftapprox_integrations import SpecKVConfig, SpecPC
from draftapprox_integrations.llama_index import SpecKVLLM, SpecPCPostprocessor, rag_query_engine

NODES = [
    TextNode(text="The old mill was built in 1821. Today it is a small museum. It closes in winter.", id_="mill"),
    TextNode(text="The bridge was opened in 1932. It is painted red. Many cyclists cross it.", id_="bridge"),
]
QUESTION = "In which year was the bridge opened?"


class Everything(BaseRetriever):
    def _retrieve(self, query_bundle: Any) -> Any:
        return [NodeWithScore(node=node, score=0.5 + 0.1 * place) for place, node in enumerate(NODES)]


def test_the_answer_and_what_it_rests_on(smol: SpecPC) -> None:
    llm = SpecKVLLM(smol.draft, config=SpecKVConfig(max_capacity_prompt=64), max_tokens=24)
    engine = rag_query_engine(Everything(), llm, SpecPCPostprocessor(smol, max_tokens=20))
    response = engine.query(QUESTION)
    assert "1932" in str(response)
    assert [node.node_id for node in response.source_nodes] == ["bridge"]
    assert "The bridge was opened in 1932." in response.source_nodes[0].text
    streaming = rag_query_engine(Everything(), llm, SpecPCPostprocessor(smol, max_tokens=20), streaming=True)
    assert "".join(streaming.query(QUESTION).response_gen) == str(response)


async def test_asynchronous(smol: SpecPC) -> None:
    llm = SpecKVLLM(smol.draft, config=SpecKVConfig(max_capacity_prompt=64), max_tokens=24)
    response = await rag_query_engine(Everything(), llm, SpecPCPostprocessor(smol, max_tokens=20)).aquery(QUESTION)
    assert "1932" in str(response)


def test_options_and_the_default_postprocessor(smol: SpecPC) -> None:
    llm = SpecKVLLM(smol.draft, max_tokens=8)
    first = SimilarityPostprocessor(similarity_cutoff=0.55)
    engine = rag_query_engine(Everything(), llm, node_postprocessors=[first])
    assert [node.node_id for node in engine.query(QUESTION).source_nodes] == ["bridge"]
    assert engine._node_postprocessors[0] is first
    second = engine._node_postprocessors[1]
    assert isinstance(second, SpecPCPostprocessor)
    assert second.load().draft is smol.draft
