"""Read nodes at indexing time, so that queries do not wait for the draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, TransformComponent

from .postprocessor import SpecPCPostprocessor


class SpecPCIngestion(TransformComponent):
    """Last step of an ingestion pipeline: the draft reads each node into the postprocessor's store.

        postprocessor = SpecPCPostprocessor(max_tokens=1024, store="passages.db")
        pipeline = IngestionPipeline(transformations=[splitter, SpecPCIngestion(postprocessor=postprocessor)])

    Nodes pass unchanged. The draft reads titles with the text, so set them before this step. The pipeline's cache skips
    nodes that are in the store's file already; with a new file, or without one, they are read again.

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

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the settings, and what tells this store from others: the pipeline's cache takes it into its key."""
        store = self.postprocessor._reference.store_identity()
        data: dict[str, Any] = super().to_dict(**kwargs)
        return data | {"store_identity": uuid4().hex if store is None else store}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> SpecPCIngestion:
        """Make the step again from `to_dict`."""
        fields = {name: value for name, value in data.items() if name not in ("store_identity", "class_name")}
        postprocessor = SpecPCPostprocessor.from_dict(dict(fields.pop("postprocessor")))
        return cls(postprocessor=postprocessor, **fields, **kwargs)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Read `nodes`; return them unchanged."""
        self.postprocessor.ingest(nodes)
        return nodes
