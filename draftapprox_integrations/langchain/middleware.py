"""SpecPC as middleware of a LangChain agent: compresses tool results in each request to the model."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage

from ..config import CompressionConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..frameworks.items import RetrievedItem
from ..frameworks.retrieval import CompressorReference, OnError, compress_items
from ..frameworks.tool_results import is_json, query_for
from ..models.loading import ModelSpec
from ..models.locks import ForkSafeLock
from ..models.tokenization import TokenizerSpec
from ..specpc.budget import Budget
from ..specpc.compressor import SpecPC
from ..specpc.scoring.embedder import Embedder
from ..specpc.scoring.registry import ScorerSpec
from ..specpc.store.passage_store import PassageStore

_Compressed = tuple[list[str], list[dict[str, Any] | None]]  # per text: the kept text, and the note on it


class SpecPCMiddleware(AgentMiddleware[Any, Any, Any]):
    """Agent middleware that compresses long tool results for each call of the model.

        agent = create_agent(chat, tools=[search], middleware=[SpecPCMiddleware(max_tokens=1024)])

    Only the request to the model changes; the agent's state keeps every message whole, artifacts included. The draft
    reads a result with the question it was fetched for and, later in a conversation, with the latest question. Results
    are cached, so none is read twice. Tool calls, answers, JSON results, errors and results that fit stay unchanged.

    Args:
        draft: The draft model: a hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or
            a `SpecPC` to share. A name is loaded at the first call.
        max_tokens: Most tokens to keep of one tool result, >= 1.
        keep_ratio: Share of each result's tokens to keep, in (0, 1]; instead of `max_tokens`.
        recall: Share of each result's evidence to keep, in (0, 1]; see `SpecPC.compress`.
        min_relevance: Lowest probability to be evidence, in [0, 1], of a kept sentence. Without any limit the budget is
            `config.max_capacity_prompt` tokens.
        config: `SpecPCConfig`, or a dict of its fields: settings of the paper's method.
        compression: `CompressionConfig`, or a dict of its fields: settings of text.
        scorer: "fused", "heads", "joint", or an object with `score(query, passages, sentences)`; see `SpecPC`.
        tokenizer: Counts the budget's tokens; usually the target's tokenizer. None: the draft's.
        embedder: Embedding model of scorer "fused"; see `SpecPC`.
        store: File, or `PassageStore`, that keeps passages which were read before.
        on_error: "raise", or "passthrough": log a warning and send the result unchanged.
        protect: Sentences that contain one of these strings are always kept.
        metadata_key: Key of the note on kept spans in a message's `response_metadata`.
        trigger_tokens: Nothing is compressed while all tool results of a request have at most this many tokens.
            0: no threshold.
        tools: Names of the tools whose results may be compressed; None: all.
        cache_size: Number of compressed results to remember, >= 1.

    Raises:
        InvalidInputError: an argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        draft: ModelSpec | SpecPC = "default",
        *,
        max_tokens: int | None = None,
        keep_ratio: float | None = None,
        recall: float | None = None,
        min_relevance: float | None = None,
        config: SpecPCConfig | dict[str, Any] | None = None,
        compression: CompressionConfig | dict[str, Any] | None = None,
        scorer: ScorerSpec = "fused",
        tokenizer: TokenizerSpec | None = None,
        embedder: Embedder | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
        on_error: OnError = "raise",
        protect: Sequence[str] = (),
        metadata_key: str = "specpc",
        trigger_tokens: int = 0,
        tools: Sequence[str] | None = None,
        cache_size: int = 256,
    ):
        super().__init__()
        limits = Budget(max_tokens=max_tokens, keep_ratio=keep_ratio, recall=recall, min_relevance=min_relevance)
        for name, value, least in (("trigger_tokens", trigger_tokens, 0), ("cache_size", cache_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInputError(f"{name} must be an integer >= {least}; got {value!r}")
        if on_error not in ("raise", "passthrough"):
            raise InvalidInputError(f"on_error must be 'raise' or 'passthrough'; got {on_error!r}")
        if isinstance(tools, str):
            raise InvalidInputError(f"tools must be a list of names; got {tools!r}")
        self._reference = CompressorReference(draft, config, compression, scorer, tokenizer, embedder, store)
        self.limits, self.trigger_tokens = limits, trigger_tokens
        # The base class has an attribute `tools`: tools that a middleware adds to the agent.
        self.tool_names = None if tools is None else frozenset(tools)
        self.on_error, self.protect, self.metadata_key = on_error, list(protect), metadata_key
        self.cache_size = cache_size
        self._cache: OrderedDict[tuple[tuple[str, ...], str], _Compressed] = OrderedDict()
        self._lock = ForkSafeLock()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, or of a pickled one: the settings and the models, without the cache."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy with an empty cache."""
        vars(self).update(state)
        self._cache, self._lock = OrderedDict(), ForkSafeLock()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with compressed tool results."""
        return handler(request.override(messages=self.compress(request.messages)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`; the draft runs in a worker thread."""
        messages = await asyncio.to_thread(self.compress, request.messages)
        return await handler(request.override(messages=messages))

    def load(self) -> SpecPC:
        """Load the draft now instead of at the first call; return the `SpecPC`."""
        return self._reference.get()

    def compress(self, messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        """Return the messages, with copies in place of the tool results that were compressed.

        A copy's `response_metadata[metadata_key]` has one note per text: kept spans, score and token counts.

        Raises:
            DraftApproxError: as `SpecPC.compress`, with `on_error="raise"`.
        """
        results = [(index, texts) for index, message in enumerate(messages) if (texts := self._texts(message))]
        if not results or self._below_trigger(results):
            return list(messages)
        questions = [(index, str(m.text).strip()) for index, m in enumerate(messages) if isinstance(m, HumanMessage)]
        questions = [(index, text) for index, text in questions if text]
        if not questions:
            return list(messages)  # no query to compress for
        compressed = list(messages)
        for index, texts in results:
            kept, notes = self._compress_texts(tuple(texts), query_for(index, questions))
            if kept != texts:
                compressed[index] = self._replace_texts(messages[index], kept, notes)
        return compressed

    def _texts(self, message: AnyMessage) -> list[str]:
        """Return the texts of a tool result that may be compressed; empty for any other message."""
        if not isinstance(message, ToolMessage) or message.status == "error":
            return []
        if self.tool_names is not None and message.name not in self.tool_names:
            return []
        blocks = [message.content] if isinstance(message.content, str) else message.content
        texts = [text for block in blocks if (text := _text_of(block)) is not None]
        return [] if any(is_json(text) for text in texts) else texts

    def _below_trigger(self, results: list[tuple[int, list[str]]]) -> bool:
        if not self.trigger_tokens:
            return False
        counts = self.load().count_tokens([text for _, texts in results for text in texts])
        return sum(counts) <= self.trigger_tokens

    def _compress_texts(self, texts: tuple[str, ...], query: str) -> _Compressed:
        key = (texts, query)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        items, result = compress_items(
            self._reference,
            [RetrievedItem(text) for text in texts],
            query,
            self.limits,
            on_error=self.on_error,
            protect=self.protect,
        )
        kept = [""] * len(texts)
        notes: list[dict[str, Any] | None] = [None] * len(texts)
        for item in items:
            kept[item.index] = texts[item.index] if item.text is None else item.text
            notes[item.index] = item.note
        compressed: _Compressed = (kept, notes)
        if result is not None:  # an error is not cached: the next request tries again
            with self._lock:
                self._cache[key] = compressed
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
        return compressed

    def _replace_texts(self, message: AnyMessage, kept: list[str], notes: list[dict[str, Any] | None]) -> AnyMessage:
        """Return a copy with the kept texts; blocks of other types stay, texts of which nothing is kept go."""
        content: Any
        if isinstance(message.content, str):
            content = kept[0]
        else:
            texts, content = iter(kept), []
            for block in message.content:
                if _text_of(block) is None:
                    content.append(block)
                elif text := next(texts):
                    content.append(text if isinstance(block, str) else {**block, "text": text})
        metadata = {**message.response_metadata, self.metadata_key: notes}
        return message.model_copy(update={"content": content, "response_metadata": metadata})


def _text_of(block: Any) -> str | None:
    """Return the text of a content block, None if it has none."""
    if isinstance(block, dict):
        block = block.get("text") if block.get("type") == "text" else None
    return block if isinstance(block, str) and block.strip() else None
