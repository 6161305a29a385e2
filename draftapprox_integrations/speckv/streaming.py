"""A generation as an iterator of text: it runs in a thread, its tokens come through a queue.

The pieces join to exactly the text that `generate` returns: text is held back while it may still change (half a
character) or turn out to be the beginning of a stop string.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..results import Generation
from .stopping import StopOnEvent


class _Tokens(BaseStreamer):
    """Puts the ids of each step into a queue; the first call brings the prompt, which is skipped."""

    def __init__(self, out: queue.SimpleQueue[Any]):
        self._out, self._prompt = out, True

    def put(self, value: Tensor) -> None:
        if not self._prompt:
            self._out.put(value.flatten().tolist())
        self._prompt = False

    def end(self) -> None:
        """The result follows."""


class TextStream:
    """Turns a call of `generate` into pieces of text.

    Args:
        tokenizer: The target's.
        stops: The stop strings of the call.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, stops

    def run(self, generate: Callable[..., list[Generation]]) -> Iterator[str]:
        """Call `generate(streamer=..., stopping_criteria=...)` in a thread and yield its text.

        Raises:
            Exception: whatever `generate` raises.
        """
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        cancelled = threading.Event()

        def work() -> None:
            try:
                out.put(generate(streamer=_Tokens(out), stopping_criteria=[StopOnEvent(cancelled)])[0])
            except BaseException as error:  # relayed: a reader must never wait for a worker that is gone
                out.put(error)

        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(work,), name="speckv-stream", daemon=True
        )
        thread.start()
        ids: list[int] = []
        sent = ""
        try:
            while True:
                item = out.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Generation):
                    if len(item.text) > len(sent):
                        yield item.text[len(sent) :]
                    return
                ids += item
                ready = self._ready(str(self._tokenizer.decode(ids, skip_special_tokens=True)))
                if len(ready) > len(sent):
                    yield ready[len(sent) :]
                    sent = ready
        finally:
            cancelled.set()
            thread.join()

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
