"""Nodes read while they are indexed, in a real ingestion pipeline."""

import pickle
from pathlib import Path
from typing import Any

from llama_index.core import Document, SummaryIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import QueryBundle

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.llama_index import SpecPCIngestion, SpecPCPostprocessor
from tests.conftest import DEMO

QUESTION = "On what date did the Candlemas Storm come?"


def test_what_was_ingested_is_not_read_again(tmp_path: Path) -> None:
    path = DEMO / "docs" / "three-storms.md"
    postprocessor = SpecPCPostprocessor("default", max_tokens=60, store=tmp_path / "p.db")
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=150, chunk_overlap=0),
            SpecPCIngestion(postprocessor=postprocessor),
        ]
    )
    nodes = pipeline.run(documents=[Document(text=path.read_text(), metadata={"file_name": "storms", "page": 1})])
    assert len(nodes) > 3
    retrieved = SummaryIndex(nodes, embed_model=MockEmbedding(embed_dim=2)).as_retriever().retrieve(QUESTION)
    later = pickle.loads(pickle.dumps(SpecPCPostprocessor("default", max_tokens=60, store=tmp_path / "p.db")))
    kept, result = later.compress(retrieved, QueryBundle(QUESTION))
    assert "2 February 1938" in " ".join(node.text for node in kept)
    assert result.draft_tokens < 10 * len(QUESTION.split())  # the question's tokens only
    engine = SummaryIndex(nodes, embed_model=MockEmbedding(embed_dim=2)).as_query_engine(
        llm=MockLLM(), node_postprocessors=[later]
    )
    assert [node.text for node in engine.query(QUESTION).source_nodes] == [node.text for node in kept]


def test_the_retrievers_scores_and_an_embedder_are_used(embedded_model: LoadedModel) -> None:
    asked = []

    class Embedding(MockEmbedding):
        def _get_text_embedding(self, text: Any) -> Any:
            asked.append(text)
            return [1.0, float("Zzz" in text)]

        def _get_query_embedding(self, query: Any) -> Any:
            return [0.0, 1.0]

    alike = ["The same words stand here. So they do.", "The same words stand here. Zzz zzz."]
    nodes = SummaryIndex.from_documents(
        [Document(text=text) for text in alike], embed_model=MockEmbedding(embed_dim=2)
    ).as_retriever().retrieve("What?")  # fmt: skip
    scores = {}
    for name, embedder in (("without", None), ("with", Embedding(embed_dim=2))):
        part = SpecPCPostprocessor(SpecPC(embedded_model, embedder=embedder), max_tokens=9)
        _, result = part.compress(nodes, QueryBundle("What?"))
        scores[name] = result.passages[1].score - result.passages[0].score
    assert scores["with"] > scores["without"]
    assert len(asked) == 4
