"""SpecPC inside a LangChain agent: what tools brought is shortened for each call of the model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage

from ..config import SpecPCConfig
from ..errors import InvalidInputError
from ..frameworks.retrieval import CompressorReference, OnError, compress_retrieved
from ..models.loading import ModelSpec
from ..models.tokenization import TokenizerSpec
from ..specpc.compressor import SpecPC
from ..specpc.validation import as_config, check_budget

_Shortened = tuple[list[str], list[dict[str, Any] | None]]  # per text what is left, and the note on it


class SpecPCMiddleware(AgentMiddleware[Any, Any, Any]):
    """Shorten long tool results to what a small draft model looks at when it reads them with the user's question.

        agent = create_agent(chat, tools=[search], middleware=[SpecPCMiddleware(max_tokens=1024)])

    Only the request to the model changes: the agent's state keeps every message whole, artifacts included. A result is
    read with the question it was fetched for and, later in a conversation, the latest question; what was read once is
    not read again. Tool calls, answers, results that are JSON, errors, and results that fit are left as they are.

    Args:
        draft: A hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a `SpecPC` to
            share. A name is loaded on first use.
        max_tokens: Most tokens of one tool result, >= 1.
        ratio: Share of each result's tokens to keep, in (0, 1]; instead of `max_tokens`. With neither, `config`'s
            `max_capacity_prompt`.
        trigger_tokens: As long as all tool results of a request have no more tokens together, nothing is shortened.
            0: no such threshold.
        tools: Names of the tools whose results may be shortened; None: all.
        config: Settings of SpecPC.
        tokenizer: Counts the tokens: usually the target's. None: the draft's.
        protect: Sentences that contain one of these strings are always kept.
        on_error: "raise", or "passthrough" to send a result as it is and log a warning.
        cache_size: How many shortened results are remembered, >= 1.

    Raises:
        InvalidInputError: a budget or size out of range.
    """

    def __init__(
        self,
        draft: ModelSpec | SpecPC = "default",
        *,
        max_tokens: int | None = None,
        ratio: float | None = None,
        trigger_tokens: int = 0,
        tools: Sequence[str] | None = None,
        config: SpecPCConfig | dict[str, Any] | None = None,
        tokenizer: TokenizerSpec | None = None,
        protect: Sequence[str] = (),
        on_error: OnError = "raise",
        cache_size: int = 256,
    ):
        super().__init__()
        check_budget(max_tokens, ratio)
        for name, value, least in (("trigger_tokens", trigger_tokens, 0), ("cache_size", cache_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInputError(f"{name} must be an integer >= {least}; got {value!r}")
        if on_error not in ("raise", "passthrough"):
            raise InvalidInputError(f"on_error must be 'raise' or 'passthrough'; got {on_error!r}")
        if isinstance(tools, str):
            raise InvalidInputError(f"tools must be a list of names; got {tools!r}")
        self._reference = CompressorReference(draft, as_config(config, SpecPCConfig), tokenizer)
        self.max_tokens, self.ratio, self.trigger_tokens = max_tokens, ratio, trigger_tokens
        self.only = None if tools is None else frozenset(tools)
        self.protect, self.on_error, self.cache_size = list(protect), on_error, cache_size
        self._cache: OrderedDict[tuple[tuple[str, ...], str], _Shortened] = OrderedDict()
        self._lock = threading.Lock()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with shortened tool results."""
        return handler(request.override(messages=self.shorten(request.messages)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`; the draft reads in a worker thread."""
        messages = await asyncio.to_thread(self.shorten, request.messages)
        return await handler(request.override(messages=messages))

    def shorten(self, messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        """The messages, with copies of those tool results that had to be shortened.

        The note on what was kept of each text is in the copy's `response_metadata["specpc"]`.

        Raises:
            DraftApproxError: as `SpecPC.compress`, with on_error "raise".
        """
        found = [(place, texts) for place, message in enumerate(messages) if (texts := self._texts_of(message))]
        if not found or self._few(found):
            return list(messages)
        questions = [(place, str(m.text).strip()) for place, m in enumerate(messages) if isinstance(m, HumanMessage)]
        questions = [(place, text) for place, text in questions if text]
        if not questions:
            return list(messages)  # nothing to choose by
        shortened = list(messages)
        for place, texts in found:
            own = [text for before, text in questions if before < place][-1:]
            query = "\n".join(dict.fromkeys([*own, questions[-1][1]]))
            left, notes = self._left_of(tuple(texts), query)
            if left != texts:
                shortened[place] = _replaced(messages[place], left, notes)
        return shortened

    def _texts_of(self, message: AnyMessage) -> list[str]:
        """The texts of a tool result that may be shortened."""
        if not isinstance(message, ToolMessage) or message.status == "error":
            return []
        if self.only is not None and message.name not in self.only:
            return []
        blocks = [message.content] if isinstance(message.content, str) else message.content
        texts = [text for block in blocks if (text := _text_in(block)) is not None]
        return [] if any(_is_json(text) for text in texts) else texts

    def _few(self, found: list[tuple[int, list[str]]]) -> bool:
        if not self.trigger_tokens:
            return False
        counts = self._reference.get().count_tokens([text for _, texts in found for text in texts])
        return sum(counts) <= self.trigger_tokens

    def _left_of(self, texts: tuple[str, ...], query: str) -> _Shortened:
        key = (texts, query)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        kept, result = compress_retrieved(
            self._reference,
            texts,
            [{}] * len(texts),
            query,
            max_tokens=self.max_tokens,
            ratio=self.ratio,
            on_empty="drop",
            on_error=self.on_error,
            protect=self.protect,
            title_keys=(),
            metadata_key="specpc",
        )
        left = [""] * len(texts)
        notes: list[dict[str, Any] | None] = [None] * len(texts)
        for item in kept:
            left[item.index] = texts[item.index] if item.text is None else item.text
            notes[item.index] = item.note
        found: _Shortened = (left, notes)
        if result is not None:  # what failed is tried again
            with self._lock:
                self._cache[key] = found
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
        return found


def _text_in(block: Any) -> str | None:
    """The text of a content block that has one."""
    if isinstance(block, dict):
        block = block.get("text") if block.get("type") == "text" else None
    return block if isinstance(block, str) and block.strip() else None


def _is_json(text: str) -> bool:
    """An object or list: pieces of it would no longer be one."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _replaced(message: AnyMessage, left: list[str], notes: list[dict[str, Any] | None]) -> AnyMessage:
    """A copy with other texts; blocks of another kind stay, texts of which nothing is left go."""
    content: Any
    if isinstance(message.content, str):
        content = left[0]
    else:
        texts, content = iter(left), []
        for block in message.content:
            if _text_in(block) is None:
                content.append(block)
            elif text := next(texts):
                content.append(text if isinstance(block, str) else {**block, "text": text})
    metadata = {**message.response_metadata, "specpc": notes}
    return message.model_copy(update={"content": content, "response_metadata": metadata})
