"""Base class of every retrieval part: its fields, its `SpecPC`, and the compression of retrieved items.

A framework's part converts its documents or nodes to `RetrievedItem`s and copies each `KeptItem` back. Imports no
framework; needs pydantic, which every supported framework brings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ..config import CompressionConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..models.loading import ModelSpec
from ..models.locks import ForkSafeLock
from ..models.references import Reference, as_reference, check_loadable, is_placeholder, model_reference
from ..models.tokenization import TokenizerSpec
from ..results import CompressionResult
from ..specpc.budget import Budget, Order
from ..specpc.compressor import SpecPC
from ..specpc.remote import refuse_settings
from ..specpc.request import OnEmpty
from ..specpc.scoring.embedder import Embedder, check_embedder
from ..specpc.scoring.per_passage import Progress
from ..specpc.scoring.registry import ScorerSpec, check_scorer
from ..specpc.store.passage_store import PassageStore
from ..specpc.store.sqlite import store_identity
from ..specpc.validation import as_config
from .items import KeptItem, RetrievedItem, note_on, title_of

OnError = Literal["raise", "passthrough"]
TITLE_KEYS = ("title", "file_name", "source")

# Repeated in every subclass: pydantic takes the configuration of the last base class, which is the framework's.
FIELDS = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

logger = logging.getLogger(__name__)


class CompressorReference(Reference):
    """A serializable reference to a `SpecPC`, which is made on first use.

    Pickling keeps names, settings and the store's limits. What else was given as an object must be given again after
    unpickling.

    Args:
        draft: A model spec, or a `SpecPC` to share.
        config, compression, scorer, tokenizer, embedder, store: As for `SpecPC`.

    Attributes:
        config, compression: The settings in use.
        draft_name, scorer_name, tokenizer_name, embedder_name, store_name: Names to save; for an object a marker.

    Raises:
        InvalidInputError: an argument of the wrong type, or settings beside a shared `SpecPC`, which has its own.
    """

    def __init__(
        self,
        draft: ModelSpec | SpecPC,
        config: SpecPCConfig | dict[str, Any] | None = None,
        compression: CompressionConfig | dict[str, Any] | None = None,
        scorer: ScorerSpec = "fused",
        tokenizer: TokenizerSpec | None = None,
        embedder: Embedder | str | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
    ):
        if not isinstance(draft, SpecPC):
            refuse_settings(draft, config, compression, scorer, tokenizer, store, embedder)
        self._lock = ForkSafeLock()
        self._compressor: SpecPC | None = None
        shared = draft if isinstance(draft, SpecPC) else None
        if isinstance(draft, SpecPC):
            others = (config, compression, tokenizer, embedder, store)
            if scorer != "fused" or any(other is not None for other in others):
                raise InvalidInputError(
                    "a shared SpecPC brings its own config, compression, scorer, tokenizer, embedder and store; pass a "
                    "model to set others"
                )
            self._compressor, config, compression, scorer = draft, draft.config, draft.compression, draft.scorer_spec
            tokenizer, embedder, store, draft = draft.tokenizer, draft.embedder, draft.store, draft.draft
        if not is_placeholder(scorer):
            check_scorer(scorer)
        if not is_placeholder(embedder):
            check_embedder(embedder)
        self.config, self.compression = as_config(config, SpecPCConfig), as_config(compression, CompressionConfig)
        self._draft, self._scorer, self._tokenizer, self._embedder = draft, scorer, tokenizer, embedder
        self._store = store
        lost = shared is not None and shared.has_heads_of_its_own  # without them it would not be the same
        self.draft_name = as_reference(shared) if lost else model_reference(draft)
        self.scorer_name = as_reference(scorer)
        self.tokenizer_name = None if tokenizer is None else as_reference(tokenizer)
        self.embedder_name = None if embedder is None else as_reference(embedder)
        self.store_name = _store_reference(store)

    def get(self) -> SpecPC:
        """Return the `SpecPC`; the first call loads the draft.

        Raises:
            InvalidInputError: the part was saved without an object it was made with.
            ModelLoadError: as `load_model`.
        """
        with self._lock:
            if self._compressor is None:
                check_loadable("draft", self._draft)
                check_loadable("scorer", self._scorer)
                check_loadable("tokenizer", self._tokenizer)
                check_loadable("embedder", self._embedder)
                check_loadable("store", self._store)
                self._compressor = SpecPC(
                    self._draft,
                    self.config,
                    compression=self.compression,
                    scorer=self._scorer,
                    tokenizer=self._tokenizer,
                    embedder=self._embedder,  # type: ignore[arg-type]  # a str is a marker, refused above
                    store=self._store,
                )
            return self._compressor

    def store_identity(self) -> int | None:
        """Return the number of the store's file, another one for each file ever made; None if there is no file yet."""
        path = self._store.path if isinstance(self._store, PassageStore) else self._store
        return None if path is None else store_identity(Path(path).expanduser())

    def __reduce__(self) -> tuple[Any, ...]:
        store = self._store if isinstance(self._store, PassageStore) else self.store_name
        return CompressorReference, (*self._names(), store)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompressorReference):
            return NotImplemented
        return (*self._names(), self.store_name) == (*other._names(), other.store_name)

    __hash__ = None

    def _names(self) -> tuple[Any, ...]:
        return (
            self.draft_name, self.config, self.compression, self.scorer_name, self.tokenizer_name, self.embedder_name
        )  # fmt: skip


def _store_reference(store: PassageStore | str | os.PathLike[str] | None) -> str | None:
    """Return the file of a store; a placeholder if the file's name alone would not give the same store."""
    if isinstance(store, PassageStore):
        if not store.has_default_limits:
            return as_reference(store)
        store = store.path
    return None if store is None else os.fspath(store)


class SpecPCBase(BaseModel):
    """Base class of retrieval parts: keeps the sentences of retrieved items that matter for the query.

    A model given by name is loaded at the first call. Saving keeps names and settings, never weights.

    Args:
        draft: The draft model: a hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or
            a `SpecPC` to share.
        max_tokens: Most tokens to keep of all items together, metadata not counted; >= 1.
        keep_ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`.
        recall: Share of the evidence to keep, in (0, 1], as far as the scores tell, in as few sentences as that takes.
            Scorer "fused" only, as `min_relevance`.
        min_relevance: Lowest probability to be evidence, in [0, 1], of a kept sentence; all may be dropped.
        top_n: Most items of which something is kept, the most relevant ones, >= 1. Without any limit the budget is
            `config.max_capacity_prompt` tokens.
        order: Of the output: "input", or "relevance": the most relevant first, their score that relevance.
        config: `SpecPCConfig`, or a dict of its fields: settings of the paper's method.
        compression: `CompressionConfig`, or a dict of its fields: settings of text.
        scorer: "fused", "heads", "joint", or an object with `score(query, passages, sentences)`; see `SpecPC`.
        tokenizer: Counts the budget's tokens; usually the target's tokenizer. None: the draft's.
        embedder: Embedding model of scorer "fused"; see `SpecPC`.
        store: File, or `PassageStore`, that keeps passages which were read before; see `ingest`.
        on_empty: "drop" leaves out items of which nothing is kept. "keep_best" keeps every item with its best
            sentence, or as much of it as the budget allows.
        on_error: "raise", or "passthrough": log a warning and return all items unchanged.
        protect: Sentences that contain one of these strings are always kept.
        title_keys: Metadata keys that may hold a title, the first found is used. The draft reads it with the text; it
            costs no budget. Of a file's path under "source" only the name is read, not the folders.
        metadata_key: Metadata key for the kept spans, score and token counts.
        **others: Fields of the framework's own base class.

    Raises:
        InvalidInputError: an argument is out of range or of the wrong type.
    """

    model_config = FIELDS

    draft: str = Field(frozen=True, description="Name of the draft model.")
    max_tokens: int | None = Field(default=None, description="Most tokens to keep, all items together.")
    keep_ratio: float | None = Field(default=None, description="Share of the tokens to keep, instead of max_tokens.")
    recall: float | None = Field(default=None, description="Share of the evidence to keep.")
    min_relevance: float | None = Field(default=None, description="Lowest relevance of a kept sentence.")
    top_n: int | None = Field(default=None, description="Most items of which something is kept.")
    order: Order = Field(default="input", description="Order of the output: as given, or by relevance.")
    config: SpecPCConfig = Field(frozen=True, description="Settings of the paper's method.")
    compression: CompressionConfig = Field(frozen=True, description="Settings of text.")
    scorer: str = Field(default="fused", frozen=True, description="Name of the sentence scorer.")
    tokenizer: str | None = Field(default=None, frozen=True, description="Name of the tokenizer of the budget.")
    embedder: str | None = Field(default=None, frozen=True, description="Marker of the embedder, an object.")
    store: str | None = Field(default=None, frozen=True, description="File that keeps passages read before.")
    on_empty: OnEmpty = Field(default="drop", description="Whether to drop items of which nothing is kept.")
    on_error: OnError = Field(default="raise", description="Whether to raise errors or return the items unchanged.")
    protect: list[str] = Field(default_factory=list, description="Sentences that contain one of these are kept.")
    title_keys: list[str] = Field(default=list(TITLE_KEYS), description="Metadata keys that may hold a title.")
    metadata_key: str = Field(default="specpc", description="Metadata key for the kept spans.")

    _reference: CompressorReference = PrivateAttr()

    def __init__(
        self,
        draft: ModelSpec | SpecPC = "default",
        *,
        max_tokens: int | None = None,
        keep_ratio: float | None = None,
        recall: float | None = None,
        min_relevance: float | None = None,
        top_n: int | None = None,
        order: Order = "input",
        config: SpecPCConfig | dict[str, Any] | None = None,
        compression: CompressionConfig | dict[str, Any] | None = None,
        scorer: ScorerSpec = "fused",
        tokenizer: TokenizerSpec | None = None,
        embedder: Embedder | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
        on_empty: OnEmpty = "drop",
        on_error: OnError = "raise",
        protect: Sequence[str] = (),
        title_keys: Sequence[str] = TITLE_KEYS,
        metadata_key: str = "specpc",
        **others: Any,
    ):
        limits = Budget(
            max_tokens=max_tokens,
            keep_ratio=keep_ratio,
            recall=recall,
            min_relevance=min_relevance,
            top_n=top_n,
            order=order,
        )
        reference = CompressorReference(draft, config, compression, scorer, tokenizer, embedder, store)
        super().__init__(
            draft=reference.draft_name,
            **asdict(limits),
            config=reference.config,
            compression=reference.compression,
            scorer=reference.scorer_name,
            tokenizer=reference.tokenizer_name,
            embedder=reference.embedder_name,
            store=reference.store_name,
            on_empty=on_empty,
            on_error=on_error,
            protect=list(protect),
            title_keys=list(title_keys),
            metadata_key=metadata_key,
            **others,
        )
        self._reference = reference

    def load(self) -> SpecPC:
        """Load the draft now instead of at the first call; return the `SpecPC`."""
        return self._reference.get()

    def _compress_items(
        self, items: Sequence[RetrievedItem], query: str | None
    ) -> tuple[list[KeptItem], CompressionResult | None]:
        return compress_items(
            self._reference,
            items,
            query,
            Budget(**{field.name: getattr(self, field.name) for field in fields(Budget)}),
            on_empty=self.on_empty,
            on_error=self.on_error,
            protect=self.protect,
            title_keys=self.title_keys,
            metadata_key=self.metadata_key,
        )

    def _ingest_items(self, items: Sequence[RetrievedItem], progress: Progress | None = None) -> int:
        with_text = [item for item in items if item.text and item.text.strip()]
        titles = [title_of(item.metadata, self.title_keys) for item in with_text]
        return self.load().ingest([item.text or "" for item in with_text], titles, progress=progress)


def compress_items(
    reference: CompressorReference,
    items: Sequence[RetrievedItem],
    query: str | None,
    limits: Budget,
    *,
    on_empty: OnEmpty = "drop",
    on_error: OnError = "raise",
    protect: Sequence[str] = (),
    title_keys: Sequence[str] = (),
    metadata_key: str = "specpc",
) -> tuple[list[KeptItem], CompressionResult | None]:
    """Compress the texts of retrieved items; arguments as `SpecPCBase`.

    Returns:
        The items that stay, in input order, or by relevance with those without text last; and the result behind them.
        The result is None after an error that was passed over, or if no item has text.

    Raises:
        DraftApproxError: as `SpecPC.compress`, with `on_error="raise"`.
    """
    unchanged = [KeptItem(index) for index in range(len(items))]
    with_text = [index for index, item in enumerate(items) if item.text and item.text.strip()]
    if not with_text:
        return unchanged, None
    try:
        result = reference.get().compress(
            [items[index].text or "" for index in with_text],
            query or "",
            **asdict(limits),
            titles=[title_of(items[index].metadata, title_keys) for index in with_text],
            on_empty=on_empty,
            protect=protect,
            retriever_scores=[items[index].score for index in with_text],
        )
    except Exception as error:
        if on_error == "raise":
            raise
        logger.warning("SpecPC passed %d items on uncompressed: %s", len(items), error)
        return unchanged, None
    if result.tokens_before and not result.tokens_after and limits.min_relevance is None:
        logger.warning("SpecPC kept nothing: no word of the best sentence fits %d tokens", result.budget)
    kept = []
    for passage in result.passages:
        index = with_text[passage.index]
        if passage.text or on_empty == "keep_best":
            kept.append(KeptItem(index, passage.text, note_on(passage, items[index].metadata.get(metadata_key))))
    kept += [unchanged[index] for index in sorted(set(range(len(items))) - set(with_text))]
    return kept if limits.order == "relevance" else sorted(kept, key=lambda item: item.index), result
