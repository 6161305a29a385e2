"""Nodes read while they are indexed, in a real ingestion pipeline."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import QueryBundle, TextNode

from draftapprox_integrations import LoadedModel, PassageStore, SpecPC
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
        liked: str

        def _get_text_embedding(self, text: Any) -> Any:
            asked.append(text)
            return [0.0, 1.0] if self.liked in text else [1.0, 0.0]

        def _get_query_embedding(self, query: Any) -> Any:
            return [0.0, 1.0]

    texts = ["The bridge is long. It is painted red.", "The crossing was there from 1932. Many came to see."]
    nodes = SummaryIndex.from_documents(
        [Document(text=text) for text in texts], embed_model=MockEmbedding(embed_dim=2)
    ).as_retriever().retrieve(QUESTION)  # fmt: skip
    scores = {}
    for liked in ("bridge", "crossing"):
        embedder = Embedding(embed_dim=2, liked=liked)
        part = SpecPCPostprocessor(SpecPC(embedded_model, embedder=embedder), max_tokens=9)
        _, result = part.compress(nodes, QueryBundle(QUESTION))
        scores[liked] = result.passages[1].score - result.passages[0].score
    assert scores["crossing"] > scores["bridge"]
    assert len(asked) == 12  # a sentence beyond the budget is read in pieces


def wipe(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


@pytest.mark.parametrize("as_object", [False, True])
def test_a_new_store_is_filled_although_the_pipeline_has_a_cache(tmp_path: Path, as_object: bool) -> None:
    path = tmp_path / "p.db"

    def step() -> SpecPCIngestion:
        store = PassageStore(path) if as_object else path
        return SpecPCIngestion(postprocessor=SpecPCPostprocessor("default", store=store))

    documents = [Document(text="The old mill was built in 1821."), Document(text="The bridge was opened in 1932.")]
    pipeline = IngestionPipeline(transformations=[step()])
    for _ in range(2):
        pipeline.run(documents=documents)
        assert PassageStore(path).stats().passages > 0
    nodes = [TextNode(text="a")]
    hashes = {get_transformation_hash(nodes, step()) for _ in range(3)}
    assert len(hashes) == 1  # the same file: the cache works
    wipe(path)
    pipeline.transformations = [step()]
    pipeline.run(documents=documents)
    assert PassageStore(path).stats().passages > 0
    assert get_transformation_hash(nodes, step()) not in hashes


def test_without_a_file_nothing_is_skipped() -> None:
    step = SpecPCIngestion(postprocessor=SpecPCPostprocessor("default"))
    nodes = [TextNode(text="a")]
    assert get_transformation_hash(nodes, step) != get_transformation_hash(nodes, step)


def test_saved_and_made_again(tmp_path: Path) -> None:
    step = SpecPCIngestion(postprocessor=SpecPCPostprocessor("default", max_tokens=7, store=tmp_path / "p.db"))
    PassageStore(tmp_path / "p.db").close()
    again = SpecPCIngestion.from_dict(step.to_dict())
    assert again.to_dict() == step.to_dict()
    assert again.postprocessor.max_tokens == 7
    assert pickle.loads(pickle.dumps(step)).to_dict() == step.to_dict()
