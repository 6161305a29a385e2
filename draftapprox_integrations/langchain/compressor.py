"""SpecPC as a LangChain document compressor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import TypedDict

from ..config import SpecPCConfig
from ..errors import InvalidInputError
from ..frameworks.retrieval import CompressorReference, Kept, OnError, compress_retrieved, ingest_retrieved
from ..models.loading import ModelSpec
from ..models.tokenization import TokenizerSpec
from ..specpc.compressor import OnEmpty, SpecPC
from ..specpc.scoring.embedder import Embedder
from ..specpc.store.passage_store import PassageStore
from ..specpc.validation import as_config, check_budget


class CompressorInput(TypedDict):
    """What the compressor takes as a Runnable."""

    documents: Sequence[Document]
    query: str


class SpecPCCompressor(BaseDocumentCompressor, RunnableSerializable[CompressorInput, list[Document]]):
    """Keep what a small draft model looks at when it reads the documents with the query.

        ContextualCompressionRetriever(base_compressor=SpecPCCompressor(max_tokens=1024), base_retriever=retriever)

    It is also a Runnable: `compressor.invoke({"documents": docs, "query": "..."})`; either way it shows up as a span
    of its own in a trace.

    Every output document is a copy of an input document, in the input's order, with its id and metadata; its text is
    verbatim pieces of the original. The kept character spans are in `metadata[metadata_key]`. Input documents are
    never changed. Empty documents pass untouched.

    Args:
        draft: A hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a `SpecPC` to
            share. A name is loaded on first use.
        max_tokens: Most tokens of all documents together (metadata not counted), >= 1.
        ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`. With neither, `config`'s
            `max_capacity_prompt`.
        config: Settings of SpecPC.
        tokenizer: Counts the budget: usually the target's. None: the draft's.
        on_empty: "drop" leaves out documents of which nothing is kept; "keep_best" keeps them all, each
            with its best sentence, or as much of it as the budget allows (none, if that is very small).
        on_error: "raise", or "passthrough" to return the documents as they are and log a warning.
        protect: Sentences that contain one of these strings are always kept.
        title_keys: Metadata keys that may hold a title, which the draft reads with the document's text.
        metadata_key: Where the spans are noted.
        store: File (or `PassageStore`) that keeps passages which were read before; see `ingest`.
        embedder: An `Embeddings` that helps to choose sentences; see `SpecPC`.

    Raises:
        InvalidInputError: a budget out of range; at use: no query, text that cannot be read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    draft: str = Field(frozen=True, description="What the draft model is loaded from.")
    max_tokens: int | None = None
    ratio: float | None = None
    config: SpecPCConfig = Field(frozen=True, description="Settings of SpecPC.")
    tokenizer: str | None = Field(default=None, frozen=True, description="What counts the tokens; None: the draft's.")
    on_empty: OnEmpty = "drop"
    on_error: OnError = "raise"
    protect: list[str] = Field(default_factory=list)
    title_keys: list[str] = Field(default_factory=lambda: ["title"])
    metadata_key: str = "specpc"

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
        store: PassageStore | str | os.PathLike[str] | None = None,
        embedder: Embedder | None = None,
        **fields: Any,
    ):
        check_budget(max_tokens, ratio)
        slot = CompressorReference(draft, as_config(config, SpecPCConfig), tokenizer, store, embedder)
        super().__init__(  # type: ignore[call-arg]
            draft=slot.draft_name,
            max_tokens=max_tokens,
            ratio=ratio,
            config=slot.config,
            tokenizer=slot.tokenizer_name,
            store=slot.store_name,
            **fields,
        )
        self._reference = slot

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Compress retrieved documents."""
        return self.invoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Compress retrieved documents in a worker thread."""
        return await self.ainvoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    def invoke(self, input: CompressorInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Compress `input["documents"]` for `input["query"]`.

        Raises:
            InvalidInputError: the input has not these two keys, or call arguments are given: settings belong in the
                constructor.
        """
        if kwargs:
            raise InvalidInputError(f"{', '.join(kwargs)}: give settings to SpecPCCompressor(...), not to the call")
        return self._call_with_config(self._compress, input, config, run_type="retriever")

    def _compress(self, input: CompressorInput) -> list[Document]:
        if not isinstance(input, dict) or not {"documents", "query"} <= input.keys():
            given = list(input) if isinstance(input, dict) else type(input).__name__
            raise InvalidInputError(f'the input must be {{"documents": [...], "query": "..."}}; got {given}')
        documents = list(input["documents"])
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InvalidInputError(f"documents[{index}] must be a Document; got {type(document).__name__}")
        kept, _ = compress_retrieved(
            self._reference,
            [document.page_content for document in documents],
            [document.metadata for document in documents],
            input["query"],
            max_tokens=self.max_tokens,
            ratio=self.ratio,
            on_empty=self.on_empty,
            on_error=self.on_error,
            protect=self.protect,
            title_keys=self.title_keys,
            metadata_key=self.metadata_key,
            retriever_scores=[_retriever_score(document) for document in documents],
        )
        return [self._copy(documents[item.index], item) for item in kept]

    def ingest(self, documents: Sequence[Document]) -> int:
        """Read documents ahead of any question, into the store; how many tokens had to be read.

        Raises:
            InvalidInputError: not documents; and as `SpecPC.ingest`.
        """
        given: Any = documents
        if isinstance(given, Document) or not all(isinstance(document, Document) for document in given):
            raise InvalidInputError("ingest takes a list of LangChain documents; wrap a text as [Document(text)]")
        texts = [document.page_content for document in documents]
        return ingest_retrieved(self._reference, texts, [document.metadata for document in documents], self.title_keys)

    def _copy(self, original: Document, item: Kept) -> Document:
        document = original.model_copy(deep=True)
        if item.text is not None:
            document.page_content = item.text
            document.metadata[self.metadata_key] = item.note
            if item.note and item.note["score"] is not None:
                document.metadata.setdefault("relevance_score", item.note["score"])
        return document


def _retriever_score(document: Document) -> float | None:
    """What the retriever noted in the metadata, under the names that LangChain's parts use."""
    for key in ("relevance_score", "score"):
        value = document.metadata.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
