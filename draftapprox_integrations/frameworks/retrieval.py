"""What every retrieval part shares, whatever its framework: titles, errors, empty passages, the note on each item.

A framework's part turns its nodes or documents into texts and metadata, calls `compress_retrieved`, and copies each
`Kept` back into a node or document. It knows no tensor; this module knows no framework.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import SpecPCConfig
from ..errors import InvalidInputError
from ..models.loading import ModelSpec
from ..models.references import Reference, as_reference, check_loadable, is_placeholder, model_reference
from ..models.tokenization import TokenizerSpec
from ..results import CompressedPassage, CompressionResult, Span
from ..specpc.compressor import OnEmpty, SpecPC
from ..specpc.scoring.embedder import Embedder, check_embedder
from ..specpc.store.passage_store import PassageStore
from ..specpc.text.ranking import Pattern

OnError = Literal["raise", "passthrough"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """One item that stays.

    Attributes:
        index: Its place in the input.
        text: Its new text, or None if the item is passed on as it is.
        note: What to put under the metadata key: "kept" (character spans in the original text), "score",
            "tokens_before", "tokens_after"; JSON-ready.
    """

    index: int
    text: str | None
    note: dict[str, Any] | None


class CompressorReference(Reference):
    """Holds the `SpecPC` of a retrieval part: given ready-made, or made on first use from a name.

    Pickling keeps names and settings, not weights: what was given as an object must be given again.

    Args:
        draft: A model spec, a `LoadedModel`, or a `SpecPC` to share.
        config: Settings, or None for the defaults (or those of the shared `SpecPC`).
        tokenizer, store, embedder: see `SpecPC`.

    Attributes:
        config: The settings in use.
        draft_name, tokenizer_name: What to save; a name or folder, or a marker that it was an object.

    Raises:
        InvalidInputError: a shared `SpecPC` and another config or tokenizer are both given.
    """

    def __init__(
        self,
        draft: ModelSpec | SpecPC,
        config: SpecPCConfig | None = None,
        tokenizer: TokenizerSpec | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
        embedder: Embedder | str | None = None,
    ):
        self._lock = threading.Lock()
        self._engine: SpecPC | None = None
        self._draft, self._tokenizer, self._store, self._embedder = draft, tokenizer, store, embedder
        if not is_placeholder(embedder):
            check_embedder(embedder)
        if isinstance(draft, SpecPC):
            others = (tokenizer, store, embedder)
            if any(other is not None for other in others) or (config is not None and config != draft.config):
                raise InvalidInputError(
                    "a shared SpecPC brings its own config, tokenizer, store and embedder; pass a model instead to set "
                    "others"
                )
            self._engine, config, tokenizer = draft, draft.config, draft.tokenizer
        self.config = config or SpecPCConfig()
        self.draft_name = model_reference(draft.draft if isinstance(draft, SpecPC) else draft)
        self.tokenizer_name = tokenizer if tokenizer is None else as_reference(tokenizer)

    def get(self) -> SpecPC:
        """The engine.

        Raises:
            InvalidInputError: the part was saved without an object it was made with.
            ModelLoadError: as `load_model`.
        """
        with self._lock:
            if self._engine is None:
                check_loadable("draft", self._draft)
                check_loadable("tokenizer", self._tokenizer)
                check_loadable("embedder", self._embedder)
                assert not isinstance(self._draft, SpecPC)
                assert not isinstance(self._embedder, str)  # checked when it was given
                self._engine = SpecPC(
                    self._draft, self.config, tokenizer=self._tokenizer, store=self._store, embedder=self._embedder
                )
            return self._engine

    @property
    def store_name(self) -> str | None:
        """The file of the store that was given, if there is one."""
        path = self._store.path if isinstance(self._store, PassageStore) else self._store
        return None if path is None else os.fspath(path)

    def __reduce__(self) -> tuple[Any, ...]:
        embedder = None if self._embedder is None else as_reference(self._embedder)
        return CompressorReference, (self.draft_name, self.config, self.tokenizer_name, self.store_name, embedder)


def compress_retrieved(
    slot: CompressorReference,
    texts: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any]],
    query: str | None,
    *,
    max_tokens: int | None,
    ratio: float | None,
    on_empty: OnEmpty,
    on_error: OnError,
    protect: Sequence[Pattern],
    title_keys: Sequence[str],
    metadata_key: str,
    retriever_scores: Sequence[float | None] | None = None,
) -> tuple[list[Kept], CompressionResult | None]:
    """Compress the texts among some retrieved items.

    Args:
        slot: The engine.
        texts: Per item its text, or None for one that has none (an image); such an item is always passed on.
        metadata: Per item its metadata, in which the title is looked up.
        query: The question.
        max_tokens, ratio, on_empty, protect, retriever_scores: as `SpecPC.compress`.
        on_error: "raise", or "passthrough": log the error and pass every item on as it is.
        title_keys: The first of these that an item's metadata has is its title.
        metadata_key: Where an item compressed before has its note; the new note then speaks of the original too.

    Returns:
        The items that stay, in order, and the engine's result (None after an error or without any text).

    Raises:
        DraftApproxError: as `SpecPC.compress`, with on_error "raise".
    """
    places = [index for index, text in enumerate(texts) if text and text.strip()]
    try:
        if not places:
            return [Kept(index, None, None) for index in range(len(texts))], None
        result = slot.get().compress(
            [texts[index] or "" for index in places],
            query if query is not None else "",
            max_tokens=max_tokens,
            keep_ratio=ratio,
            titles=[_title(metadata[index], title_keys) for index in places],
            on_empty=on_empty,
            protect=protect,
            retriever_scores=None if retriever_scores is None else [retriever_scores[index] for index in places],
        )
    except Exception as error:
        if on_error == "raise":
            raise
        logger.warning("SpecPC passed %d items on uncompressed: %s", len(texts), error)
        return [Kept(index, None, None) for index in range(len(texts))], None
    by_place = dict(zip(places, result.passages, strict=True))
    kept = []
    for index in range(len(texts)):
        passage = by_place.get(index)
        if passage is None:
            kept.append(Kept(index, None, None))
        elif passage.text or on_empty == "keep_best":
            kept.append(Kept(index, passage.text, _note(passage, metadata[index].get(metadata_key))))
    if not result.tokens_after and result.tokens_before:
        logger.warning("SpecPC kept nothing: no word of the best sentence fits %d tokens", result.budget)
    return kept, result


def ingest_retrieved(
    slot: CompressorReference,
    texts: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any]],
    title_keys: Sequence[str],
) -> int:
    """Read the texts among some items ahead of any question; as `SpecPC.ingest`."""
    places = [index for index, text in enumerate(texts) if text and text.strip()]
    titles = [_title(metadata[index], title_keys) for index in places]
    return slot.get().ingest([texts[index] or "" for index in places], titles)


def _note(passage: CompressedPassage, before: Any) -> dict[str, Any]:
    """What to put under the metadata key; `before` is what an earlier compression left there, if any."""
    score = None if math.isnan(passage.score) else passage.score
    kept, tokens_before = passage.kept, passage.tokens_before
    if isinstance(before, dict) and {"kept", "score", "tokens_before"} <= before.keys():
        kept = compose_spans([(a, b) for a, b in before["kept"]], len(passage.original), kept)
        score, tokens_before = before["score"] if score is None else score, before["tokens_before"]
    return {
        "kept": [list(span) for span in kept],
        "score": score,
        "tokens_before": tokens_before,
        "tokens_after": passage.tokens_after,
    }


def compose_spans(first: Sequence[Span], length: int, second: Sequence[Span]) -> list[Span]:
    """Spans in an original, from spans in a text that was made of `first`'s pieces of that original.

    Args:
        first: spans whose pieces, joined by a separator, made the text.
        length: characters of that text; tells the separator's length.
        second: spans in the text.
    """
    gaps = max(len(first) - 1, 1)
    separator = (length - sum(b - a for a, b in first)) // gaps
    found, position = [], 0
    for a, b in first:
        for start, end in second:
            low, high = max(start, position), min(end, position + b - a)
            if low < high:
                found.append((a + low - position, a + high - position))
        position += b - a + separator
    return found


def _title(metadata: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            return value
    return None
