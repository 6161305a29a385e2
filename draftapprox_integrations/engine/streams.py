"""What a reader holds while the engine works on its request: the text in pieces, or the result, or the error."""

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
from .requests import Request

Item = int | Generation | BaseException


class IncrementalDetokenizer:
    """Turns token ids into text as they come; the pieces join to exactly the text of the result.

    Text is held back while it may still change (half a character) or turn out to be the beginning of a stop string.

    Args:
        tokenizer: The target's.
        stops: The stop strings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]):
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._sent = ""

    def feed(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        self._ids.append(token)
        ready = self._ready(str(self._tokenizer.decode(self._ids, skip_special_tokens=True)))
        if len(ready) <= len(self._sent):
            return ""
        piece, self._sent = ready[len(self._sent) :], ready
        return piece

    def rest(self, whole: str) -> str:
        """What is still missing of the result's text."""
        return whole[len(self._sent) :]

    def _ready(self, text: str) -> str:
        """The part of `text` that later tokens cannot change."""
        text = text.rstrip("\ufffd")
        for stop in self._stops:
            found = text.find(stop)
            if found >= 0:
                text = text[:found]
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[: len(text) - length]
                    break
        return text


class _Held(ABC):
    """What both kinds of streams know.

    Attributes:
        request: The request.
        generation: The result, once it has come.
        started: A token has been written.
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
        """Hand something to the reader, from any thread."""

    def cancel(self) -> None:
        """End the generation at its next token, if it still runs."""
        self.request.cancelled.set()

    def _on_token(self, token: int) -> None:
        self.started = True
        self.put(token)

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 0.0)

    def _late(self) -> GenerationTimeoutError:
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

    def _piece(self, item: Item, reader: IncrementalDetokenizer) -> str:
        """The text that `item` adds; the result adds what was held back."""
        return reader.feed(item) if isinstance(item, int) else reader.rest(self._finish(item).text)

    def _reader(self) -> IncrementalDetokenizer:
        if self._tokenizer is None:
            raise InvalidInputError("the target has no tokenizer, so it writes ids and cannot stream text")
        return IncrementalDetokenizer(self._tokenizer, self.request.stops)


class Stream(_Held):
    """For a reader in a thread."""

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase | None, timeout: float | None = None):
        super().__init__(request, tokenizer, timeout)
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """Hand something to the reader."""
        self._items.put(item)

    def pieces(self) -> Iterator[str]:
        """Text as it is written. Closing the iterator cancels the generation.

        Raises:
            GenerationTimeoutError: it took too long.
            Exception: what went wrong with the generation.
        """
        reader = self._reader()
        try:
            while self.generation is None:
                if piece := self._piece(self._next(), reader):
                    yield piece
        finally:
            self.cancel()

    def result(self) -> Generation:
        """The result; errors as `pieces`."""
        try:
            while isinstance(item := self._next(), int):
                pass
            return self._finish(item)
        finally:
            self.cancel()

    def _next(self) -> Item:
        try:
            return self._items.get(timeout=self._remaining())
        except queue.Empty:
            raise self._late() from None


class AsyncStream(_Held):
    """For a reader in an event loop; made in that loop."""

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase | None, timeout: float | None = None):
        super().__init__(request, tokenizer, timeout)
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Item) -> None:
        """Hand something to the reader, from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop is closed, so nobody reads any more
            self.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """As `Stream.pieces`."""
        reader = self._reader()
        try:
            while self.generation is None:
                if piece := self._piece(await self._next(), reader):
                    yield piece
        finally:
            self.cancel()

    async def result(self) -> Generation:
        """As `Stream.result`."""
        try:
            while isinstance(item := await self._next(), int):
                pass
            return self._finish(item)
        finally:
            self.cancel()

    async def _next(self) -> Item:
        try:
            item: Item = await asyncio.wait_for(self._items.get(), self._remaining())
            return item
        except TimeoutError:
            raise self._late() from None
