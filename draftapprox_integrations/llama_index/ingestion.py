"""Read nodes at indexing time, so that queries do not wait for the draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, TransformComponent

from .postprocessor import SpecPCPostprocessor


class SpecPCIngestion(TransformComponent):
    """Last step of an ingestion pipeline: the draft reads each node into the postprocessor's store.

        postprocessor = SpecPCPostprocessor(max_tokens=1024, store="passages.db")
        pipeline = IngestionPipeline(transformations=[splitter, SpecPCIngestion(postprocessor=postprocessor)])

    Nodes pass unchanged. The draft reads titles with the text, so set them before this step.

    Args:
        postprocessor: The postprocessor of the queries, or one with the same draft and store.

    Raises:
        InvalidInputError: at use, as `SpecPC.ingest`.
    """

    postprocessor: SpecPCPostprocessor = Field(description="Its draft reads the nodes, its store keeps them.")

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SpecPCIngestion"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Read `nodes`; return them unchanged."""
        self.postprocessor.ingest(nodes)
        return nodes
