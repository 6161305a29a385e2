"""Read nodes while they are indexed, so that no question waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, TransformComponent

from .postprocessor import SpecPCPostprocessor


class SpecPCIngestion(TransformComponent):
    """The last step of an ingestion pipeline: the draft reads each node into the postprocessor's store.

        postprocessor = SpecPCPostprocessor(max_tokens=1024, store="passages.db")
        pipeline = IngestionPipeline(transformations=[splitter, SpecPCIngestion(postprocessor=postprocessor)])

    Nodes pass unchanged. Titles are read with their nodes, so set them before this step.

    Args:
        postprocessor: The postprocessor that questions will use, or one with the same draft and store.

    Raises:
        InvalidInputError: at use, as `SpecPC.ingest`.
    """

    postprocessor: SpecPCPostprocessor = Field(description="Whose draft reads, and whose store keeps.")

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialized."""
        return "SpecPCIngestion"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Read `nodes`; they are returned as they are."""
        self.postprocessor.ingest(nodes)
        return nodes
