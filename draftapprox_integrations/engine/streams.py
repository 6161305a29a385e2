"""Handles of running requests: the text in pieces as it is generated, or the result, or the error."""

from __future__ import annotations

import asyncio
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import GenerationTimeoutError, InvalidInputError
from ..results import Generation
from .answer_text import AnswerText
from .requests import Request

Item = int | Generation | BaseException  # a new token id, the result, or the error


class _StreamBase(ABC):
    """State shared by both kinds of streams.

    Attributes:
        request: The request.
        generation: The result, once it has arrived.
        started: Whether a token has been generated.
    """

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase | None, timeout: float | None):
        if timeout is not None and not timeout > 0:
            raise InvalidInputError(f"timeout must be more than 0 seconds, or None; got {timeout!r}")
        self.request, self.timeout = request, timeout
        self.generation: Generation | None = None
        self.started = False
        self._tokenizer = tokenizer
        self._deadline = None if timeout is None else time.monotonic() + timeout
        request.on_token = self._on_token

    @abstractmethod
    def put(self, item: Item) -> None:
        """Hand an item to the reader, from any thread."""

    def cancel(self) -> None:
        """End the generation at its next token, if it still runs."""
        self.request.cancelled.set()

    def _on_token(self, token: int) -> None:
        self.started = True
        self.put(token)

    def _remaining_seconds(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 0.0)

    def _time_out(self) -> GenerationTimeoutError:
        self.cancel()
        return GenerationTimeoutError(
            f"the answer took longer than {self.timeout} s and was cancelled. Raise timeout, or ask for less."
        )

    def _finish(self, item: Generation | BaseException) -> Generation:
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # or error and frame would keep each other, and the engine, alive
        self.generation = item
        return item

    def _text_of(self, item: Item, answer: AnswerText) -> str:
        """The text that `item` adds; the result adds what was held back."""
        return answer.feed(item) if isinstance(item, int) else answer.flush(self._finish(item).text)

    def _answer_text(self) -> AnswerText:
        if self._tokenizer is None:
            raise InvalidInputError("the target has no tokenizer, so it writes ids and cannot stream text")
        return AnswerText(self._tokenizer, self.request.stop_strings)


class Stream(_StreamBase):
    """Stream for a reader in a thread."""

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase | None, timeout: float | None = None):
        super().__init__(request, tokenizer, timeout)
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """Hand an item to the reader."""
        self._items.put(item)

    def pieces(self) -> Iterator[str]:
        """Iterate over the text as it is generated. Closing the iterator cancels the generation.

        Raises:
            GenerationTimeoutError: it took longer than `timeout`.
            Exception: the error of the generation.
        """
        answer = self._answer_text()
        try:
            while self.generation is None:
                if piece := self._text_of(self._next(), answer):
                    yield piece
        finally:
            self.cancel()

    def result(self) -> Generation:
        """Wait for the result. Raises as `pieces` does."""
        try:
            while isinstance(item := self._next(), int):
                pass
            return self._finish(item)
        finally:
            self.cancel()

    def _next(self) -> Item:
        try:
            return self._items.get(timeout=self._remaining_seconds())
        except queue.Empty:
            raise self._time_out() from None


class AsyncStream(_StreamBase):
    """Stream for a reader in an event loop; must be made in that loop."""

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase | None, timeout: float | None = None):
        super().__init__(request, tokenizer, timeout)
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Item) -> None:
        """Hand an item to the reader, from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop is closed, so nobody reads any more
            self.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """Asynchronous form of `Stream.pieces`."""
        answer = self._answer_text()
        try:
            while self.generation is None:
                if piece := self._text_of(await self._next(), answer):
                    yield piece
        finally:
            self.cancel()

    async def result(self) -> Generation:
        """Asynchronous form of `Stream.result`."""
        try:
            while isinstance(item := await self._next(), int):
                pass
            return self._finish(item)
        finally:
            self.cancel()

    async def _next(self) -> Item:
        try:
            item: Item = await asyncio.wait_for(self._items.get(), self._remaining_seconds())
            return item
        except TimeoutError:
            raise self._time_out() from None
