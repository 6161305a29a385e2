"""SpecPC as a LangChain document compressor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor
from typing_extensions import TypedDict

from ..errors import InvalidInputError
from ..frameworks.items import KeptItem, RetrievedItem, copy_model
from ..frameworks.retrieval import FIELDS, SpecPCBase
from ..frameworks.signatures import inherit_constructor
from ..results import CompressionResult
from ..specpc.scoring.per_passage import Progress
from ..specpc.validation import as_number


class CompressorInput(TypedDict):
    """Input of the compressor as a Runnable."""

    documents: Sequence[Document]
    query: str


class SpecPCCompressor(SpecPCBase, BaseDocumentCompressor, RunnableSerializable[CompressorInput, list[Document]]):
    """Document compressor that keeps the sentences a draft model's attention selects for the query.

        ContextualCompressionRetriever(base_compressor=SpecPCCompressor(max_tokens=1024), base_retriever=retriever)

    It is also a Runnable: `compressor.invoke({"documents": docs, "query": "..."})`. Either way it appears as a span of
    its own in a trace.

    Output documents are copies of input documents, in input order, with the same id and metadata. Their text is
    verbatim pieces of the original, whose character spans are in `metadata[metadata_key]["kept"]`. Their score goes to
    `metadata["relevance_score"]`, as rerankers write it, unless the input has one: that one stays. As input,
    `relevance_score`, else `score`, is the retriever's score. Input documents are never changed. Documents without text
    pass unchanged. A value of the metadata that cannot be copied, such as a lock, is shared.

    The arguments are those of `SpecPCBase`; `embedder` takes a LangChain `Embeddings`.
    """

    model_config = FIELDS

    @inherit_constructor(SpecPCBase.__init__)
    def __init__(self) -> None: ...

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: `langchain_core.load.dumps` saves names and settings, never weights."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Constructor arguments that `langchain_core.load.dumps` saves in another form than the field's."""
        return {"config": asdict(self.config), "compression": asdict(self.compression)}

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Compress documents for a query."""
        return self.invoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As `compress_documents`, in a worker thread."""
        return await self.ainvoke({"documents": documents, "query": query}, {"callbacks": callbacks})

    def invoke(self, input: CompressorInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Compress `input["documents"]` for `input["query"]`.

        Raises:
            InvalidInputError: a key is missing, or there are call arguments: settings belong in the constructor.
        """
        if kwargs:
            raise InvalidInputError(f"{', '.join(kwargs)}: give settings to SpecPCCompressor(...), not to the call")
        return self._call_with_config(lambda given: self._compress(given)[0], input, config, run_type="retriever")

    def compress(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> tuple[list[Document], CompressionResult | None]:
        """As `compress_documents`; also return the `CompressionResult`, None without text or after a skipped error."""
        results: list[CompressionResult | None] = []

        def run(given: CompressorInput) -> list[Document]:
            kept, result = self._compress(given)
            results.append(result)
            return kept

        request: CompressorInput = {"documents": documents, "query": query}
        kept = self._call_with_config(run, request, {"callbacks": callbacks}, run_type="retriever")
        return kept, results[0]

    async def acompress(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> tuple[list[Document], CompressionResult | None]:
        """`compress` in a worker thread."""
        return await run_in_executor(None, self.compress, documents, query, callbacks)

    def _compress(self, input: CompressorInput) -> tuple[list[Document], CompressionResult | None]:
        if not isinstance(input, dict) or not {"documents", "query"} <= input.keys():
            given = list(input) if isinstance(input, dict) else type(input).__name__
            raise InvalidInputError(f'the input must be {{"documents": [...], "query": "..."}}; got {given}')
        documents = list(input["documents"])
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InvalidInputError(f"documents[{index}] must be a Document; got {type(document).__name__}")
        kept, result = self._compress_items([_as_item(document) for document in documents], input["query"])
        return [self._copy(documents[item.index], item) for item in kept], result

    def ingest(self, documents: Sequence[Document], *, progress: Progress | None = None) -> int:
        """Read documents into the store before any query; return the number of tokens read.

        Args:
            documents: The documents.
            progress: Called as progress(done, documents with text); see `SpecPC.ingest`.

        Raises:
            InvalidInputError: not documents; and as `SpecPC.ingest`.
        """
        given: Any = documents
        if isinstance(given, Document) or not all(isinstance(document, Document) for document in given):
            raise InvalidInputError("ingest takes a list of LangChain documents; wrap a text as [Document(text)]")
        return self._ingest_items([_as_item(document) for document in documents], progress)

    def _copy(self, original: Document, item: KeptItem) -> Document:
        document = copy_model(original)
        if item.text is not None and item.note is not None:
            document.page_content = item.text
            metadata = document.metadata
            metadata[self.metadata_key] = item.note
            if item.note["score"] is not None and (self.order == "relevance" or "relevance_score" not in metadata):
                metadata["relevance_score"] = item.note["score"]
        return document


def _as_item(document: Document) -> RetrievedItem:
    return RetrievedItem(document.page_content, document.metadata, _retriever_score(document))


def _retriever_score(document: Document) -> float | None:
    """Return the score in the metadata, under the names that LangChain's retrievers and rerankers use."""
    for key in ("relevance_score", "score"):
        value = as_number(document.metadata.get(key))
        if value is not None and not math.isnan(value):
            return value
    return None
