"""SpecPC as a LlamaIndex node postprocessor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ..frameworks.items import KeptItem, RetrievedItem, copy_model
from ..frameworks.retrieval import FIELDS, SpecPCBase
from ..frameworks.signatures import inherit_constructor
from ..results import CompressionResult
from ..specpc.scoring.per_passage import Progress

dispatcher = get_dispatcher(__name__)


class SpecPCPostprocessor(SpecPCBase, BaseNodePostprocessor):
    """Node postprocessor that keeps the sentences a draft model's attention selects for the query.

        index.as_query_engine(node_postprocessors=[SpecPCPostprocessor(max_tokens=1024)])

    Output nodes are copies of input nodes, in input order, with the same id, metadata, relationships and score; with
    `order="relevance"` the most relevant first, and that relevance is their score. Their
    text is verbatim pieces of the original, whose character spans are in `metadata[metadata_key]["kept"]`; neither the
    LLM nor the embedder is shown that key. Input nodes are never changed. Nodes without text pass unchanged.
    A value of the metadata that cannot be copied, such as a lock, is shared, as is the `obj` of an `IndexNode`.

    The arguments are those of `SpecPCBase`; `tokenizer` takes `Settings.tokenizer`, `embedder` takes
    `Settings.embed_model`.
    """

    model_config = FIELDS

    @inherit_constructor(SpecPCBase.__init__)
    def __init__(self) -> None: ...

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SpecPCPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self.compress(nodes, query_bundle)[0]

    def compress(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | str | None = None
    ) -> tuple[list[NodeWithScore], CompressionResult | None]:
        """As `postprocess_nodes`; also return the `CompressionResult`, None without text or after a skipped error."""
        if isinstance(query_bundle, str):
            query_bundle = QueryBundle(query_bundle)
        query = query_bundle.query_str if query_bundle is not None else None
        dispatcher.event(
            ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=len(nodes), model_name=f"SpecPC {self.draft}")
        )
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: f"SpecPC {self.draft}",
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: len(nodes),
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            kept, result = self._compress_items([_as_item(node.node, node.score) for node in nodes], query)
            compressed = [self._copy(nodes[item.index], item) for item in kept]
            event.on_end(payload={EventPayload.NODES: compressed})
        dispatcher.event(ReRankEndEvent(nodes=compressed))
        return compressed, result

    async def acompress(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | str | None = None
    ) -> tuple[list[NodeWithScore], CompressionResult | None]:
        """`compress` in a worker thread."""
        return await asyncio.to_thread(self.compress, nodes, query_bundle)

    def ingest(self, nodes: Sequence[BaseNode], *, progress: Progress | None = None) -> int:
        """Read nodes into the store before any query; return the number of tokens read.

        Args:
            nodes: The nodes.
            progress: Called as progress(done, nodes with text); see `SpecPC.ingest`.

        Raises:
            InvalidInputError: as `SpecPC.ingest`.
        """
        return self._ingest_items([_as_item(node) for node in nodes], progress)

    def _copy(self, original: NodeWithScore, item: KeptItem) -> NodeWithScore:
        node = copy_model(original.node, shared={"obj"})  # of an IndexNode, often a whole index
        if item.text is not None:
            node.set_content(item.text)
            node.metadata[self.metadata_key] = item.note
            for hidden in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
                if self.metadata_key not in hidden:
                    hidden.append(self.metadata_key)
        score = original.score
        if self.order == "relevance" and item.note is not None and item.note["score"] is not None:
            score = item.note["score"]
        return NodeWithScore(node=node, score=score)


def _as_item(node: BaseNode, score: float | None = None) -> RetrievedItem:
    try:
        text = node.get_content(metadata_mode=MetadataMode.NONE)
    except (NotImplementedError, ValueError, AttributeError):
        text = None  # a node without text, such as an image
    return RetrievedItem(text, node.metadata, score)
