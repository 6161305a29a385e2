"""One thread that serves an engine's requests, batch by batch; readers in threads or event loops wait for theirs.

The queue is fair: calls take turns, one prompt each, so a call with a thousand prompts does not hold up one with a
single prompt. Waiting requests of one kind and of similar length run as one batch.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import EngineClosedError
from ..results import Generation
from .requests import Request
from .streams import AsyncStream, Stream

_GATHER = 0.003  # seconds an idle engine waits for company: requests of one `batch` arrive within these
_PADDING = 1.5  # a batch may have this many times the tokens of its prompts

Serve = Callable[[Sequence[Request]], list[Generation | Exception]]


class Scheduler:
    """Runs requests in turn. Its thread lives while there is work, so an idle engine can be collected.

    Args:
        max_batch_size: Most requests of one batch, >= 1.

    Raises:
        ValueError: `max_batch_size` is not a positive integer.
    """

    def __init__(self, max_batch_size: int):
        if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int) or max_batch_size < 1:
            raise ValueError(f"max_batch_size must be an integer >= 1; got {max_batch_size!r}")
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, float, Stream | AsyncStream]] = []  # a heap by (turn, arrival)
        self._running: list[Stream | AsyncStream] = []
        self._arrivals = itertools.count()
        self._turn = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, streams: Sequence[Stream | AsyncStream], serve: Serve) -> None:
        """Queue the prompts of one call.

        Args:
            streams: One per prompt.
            serve: Runs one batch. Held only while there is work, so that an idle engine goes when its users do.

        Raises:
            EngineClosedError: the engine was closed.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine was closed; make a new one")
            now = time.perf_counter()
            for place, stream in enumerate(streams):
                heapq.heappush(self._waiting, (self._turn + place, next(self._arrivals), now, stream))
            if self._thread is None and streams:
                self._thread = threading.Thread(target=self._run, args=(serve,), name="speckv-worker", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End what waits and what runs with `EngineClosedError`, and wait for the thread."""
        with self._lock:
            self._closed = True
            ending = [*(entry[-1] for entry in self._waiting), *self._running]
            self._waiting.clear()
            thread = self._thread
        for stream in ending:
            stream.cancel()
            stream.put(EngineClosedError("the engine was closed before this answer was finished"))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, serve: Serve) -> None:
        time.sleep(_GATHER)
        while batch := self._next_batch():
            streams = [stream for _, stream in batch]
            begun = time.perf_counter()
            results = _attempt(streams, serve)
            for (arrived, stream), result in zip(batch, results, strict=True):
                if isinstance(result, Generation):
                    timings = {"queued": begun - arrived} | result.timings
                    result = replace(result, timings=timings)
                stream.put(result)
            del batch, streams, results, stream, result  # an idle thread holds on to nobody's answer

    def _next_batch(self) -> list[tuple[float, Stream | AsyncStream]]:
        with self._lock:
            self._running = []
            waiting = []
            for entry in self._waiting:
                if entry[-1].request.cancelled.is_set():
                    entry[-1].put(asyncio.CancelledError())
                else:
                    waiting.append(entry)
            if not waiting:
                self._waiting, self._thread = [], None
                return []
            waiting.sort(key=lambda entry: entry[:2])
            first, others = waiting[0], []
            batch, kind = [first], first[-1].request.kind
            longest = total = len(first[-1].request.ids)
            for entry in waiting[1:]:
                tokens = len(entry[-1].request.ids)
                together = (len(batch) + 1) * max(longest, tokens)
                if (
                    kind is not None
                    and len(batch) < self._max_batch_size
                    and entry[-1].request.kind == kind
                    and together <= _PADDING * (total + tokens)
                ):
                    batch.append(entry)
                    longest, total = max(longest, tokens), total + tokens
                else:
                    others.append(entry)
            self._waiting, self._turn = others, first[0]  # sorted, so it is a heap
            self._running = [entry[-1] for entry in batch]
            return [(entry[2], entry[-1]) for entry in batch]


def _attempt(streams: Sequence[Stream | AsyncStream], serve: Serve) -> Sequence[Generation | BaseException]:
    try:
        return serve([stream.request for stream in streams])
    except Exception as error:
        if len(streams) == 1:
            return [error]
        # One prompt must not fail its neighbours. What has been sent cannot be taken back, so only the rest is
        # served again, one by one.
        return [error if stream.started else _attempt([stream], serve)[0] for stream in streams]
    except BaseException as error:  # a reader must never wait for a thread that is gone
        return [error] * len(streams)
