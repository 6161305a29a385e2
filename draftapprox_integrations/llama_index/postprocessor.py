"""SpecPC as a LlamaIndex node postprocessor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ..config import SpecPCConfig
from ..frameworks.retrieval import CompressorReference, Kept, OnError, compress_retrieved, ingest_retrieved
from ..models.loading import ModelSpec
from ..models.tokenization import TokenizerSpec
from ..results import CompressionResult
from ..specpc.compressor import OnEmpty, SpecPC
from ..specpc.scoring.embedder import Embedder
from ..specpc.store.passage_store import PassageStore
from ..specpc.validation import as_config, check_budget

dispatcher = get_dispatcher(__name__)


class SpecPCPostprocessor(BaseNodePostprocessor):
    """Keep what a small draft model looks at when it reads the nodes with the query.

        index.as_query_engine(node_postprocessors=[SpecPCPostprocessor(max_tokens=1024)])

    Every output node is a copy of an input node, in the input's order, with its id, metadata, relationships and score;
    its text is verbatim pieces of the original. The kept character spans are in `metadata[metadata_key]`, which
    neither the LLM nor the embedder is shown. Input nodes are never changed. Nodes without text pass untouched.

    Args:
        draft: A hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a `SpecPC` to
            share. A name is loaded on first use.
        max_tokens: Most tokens of all nodes together (metadata not counted), >= 1.
        ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`. With neither, `config`'s
            `max_capacity_prompt`.
        config: Settings of SpecPC.
        tokenizer: Counts the budget: usually the target's (`Settings.tokenizer` works). None: the draft's.
        on_empty: "drop" leaves out nodes of which nothing is kept; "keep_best" keeps them all, each
            with its best sentence, or as much of it as the budget allows (none, if that is very small).
        on_error: "raise", or "passthrough" to return the nodes as they are and log a warning.
        protect: Sentences that contain one of these strings are always kept.
        title_keys: Metadata keys that may hold a title, which the draft reads with the node's text.
        metadata_key: Where the spans are noted.
        store: File (or `PassageStore`) that keeps passages which were read before; see `ingest`.
        embedder: An embedding model that helps to choose sentences, such as `Settings.embed_model`; see `SpecPC`.

    Raises:
        InvalidInputError: a budget out of range; at use: no query, text that cannot be read.
    """

    draft: str = Field(frozen=True, description="What the draft model is loaded from.")
    max_tokens: int | None = Field(default=None, description="Most tokens to keep, all nodes together.")
    ratio: float | None = Field(default=None, description="Share of the tokens to keep, instead of max_tokens.")
    config: SpecPCConfig = Field(frozen=True, description="Settings of SpecPC.")
    tokenizer: str | None = Field(default=None, frozen=True, description="What counts the tokens; None: the draft's.")
    on_empty: OnEmpty = Field(default="drop", description="What becomes of nodes of which nothing is kept.")
    on_error: OnError = Field(default="raise", description="Raise, or pass the nodes on as they are.")
    protect: list[str] = Field(default_factory=list, description="Sentences that contain one of these are kept.")
    title_keys: list[str] = Field(description="Metadata keys that may hold a title.")
    metadata_key: str = Field(default="specpc", description="Where the kept spans are noted.")

    store: str | None = Field(default=None, frozen=True, description="File that keeps passages read before.")

    _reference: CompressorReference = PrivateAttr()

    def __init__(
        self,
        draft: ModelSpec | SpecPC = "default",
        *,
        max_tokens: int | None = None,
        ratio: float | None = None,
        config: SpecPCConfig | dict[str, Any] | None = None,
        tokenizer: TokenizerSpec | None = None,
        on_empty: OnEmpty = "drop",
        on_error: OnError = "raise",
        protect: list[str] | None = None,
        title_keys: list[str] | None = None,
        metadata_key: str = "specpc",
        store: PassageStore | str | os.PathLike[str] | None = None,
        embedder: Embedder | None = None,
        callback_manager: CallbackManager | None = None,
    ):
        check_budget(max_tokens, ratio)
        slot = CompressorReference(draft, as_config(config, SpecPCConfig), tokenizer, store, embedder)
        super().__init__(  # type: ignore[call-arg]
            draft=slot.draft_name,
            max_tokens=max_tokens,
            ratio=ratio,
            config=slot.config,
            tokenizer=slot.tokenizer_name,
            on_empty=on_empty,
            on_error=on_error,
            protect=protect or [],
            title_keys=["title", "file_name"] if title_keys is None else title_keys,
            metadata_key=metadata_key,
            store=slot.store_name,
            callback_manager=callback_manager or CallbackManager(),
        )
        self._reference = slot

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialized."""
        return "SpecPCPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self.compress(nodes, query_bundle)[0]

    def compress(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | str | None = None
    ) -> tuple[list[NodeWithScore], CompressionResult | None]:
        """As `postprocess_nodes`, and also the `CompressionResult` behind it (None without text or after an error)."""
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
            kept, result = compress_retrieved(
                self._reference,
                [_text_of(node) for node in nodes],
                [node.node.metadata for node in nodes],
                query,
                max_tokens=self.max_tokens,
                ratio=self.ratio,
                on_empty=self.on_empty,
                on_error=self.on_error,
                protect=self.protect,
                title_keys=self.title_keys,
                metadata_key=self.metadata_key,
                retriever_scores=[node.score for node in nodes],
            )
            compressed = [self._copy(nodes[item.index], item) for item in kept]
            event.on_end(payload={EventPayload.NODES: compressed})
        dispatcher.event(ReRankEndEvent(nodes=compressed))
        return compressed, result

    def ingest(self, nodes: Sequence[BaseNode]) -> int:
        """Read nodes ahead of any question, into the store; how many tokens had to be read.

        Raises:
            InvalidInputError: as `SpecPC.ingest`.
        """
        texts = [_text_of(NodeWithScore(node=node)) for node in nodes]
        return ingest_retrieved(self._reference, texts, [node.metadata for node in nodes], self.title_keys)

    def _copy(self, original: NodeWithScore, item: Kept) -> NodeWithScore:
        node = original.node.model_copy(deep=True)
        if item.text is not None:
            node.set_content(item.text)
            node.metadata[self.metadata_key] = item.note
            for hidden in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
                if self.metadata_key not in hidden:
                    hidden.append(self.metadata_key)
        return NodeWithScore(node=node, score=original.score)


def _text_of(node: NodeWithScore) -> str | None:
    try:
        return node.node.get_content(metadata_mode=MetadataMode.NONE)
    except (NotImplementedError, ValueError, AttributeError):
        return None  # an image or another node without text
