"""The engine's queue and the thread that serves it, batch by batch.

Scheduling is fair: calls take turns, one prompt each, so a call with a thousand prompts does not delay one with a
single prompt. Waiting requests that may share a batch, and have similar lengths, run as one.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakSet

from ..errors import EngineClosedError
from ..results import Generation
from .pipeline import Pipeline
from .streams import AsyncStream, Stream

_GATHER_SECONDS = 0.003  # how long an idle engine waits for further requests before it forms the first batch
_MAX_PADDING = 1.5  # largest allowed ratio of a batch's tokens, padding included, to its prompts' tokens


# All schedulers of this process, for its exit and for forked children.
_schedulers: WeakSet[Scheduler] = WeakSet()


@dataclass
class _Entry:
    """A waiting stream, ordered by turn, then by arrival."""

    turn: int
    arrival: int
    queued_at: float
    stream: Stream | AsyncStream


class Scheduler:
    """Queues streams and runs them through the pipeline in batches.

    The thread lives only while there is work, so an idle engine is garbage-collected with its last user.

    Args:
        pipeline: Runs the batches.
        max_batch_size: Most requests in one batch, >= 1.

    Raises:
        ValueError: `max_batch_size` is not a positive integer.
    """

    def __init__(self, pipeline: Pipeline, max_batch_size: int):
        if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int) or max_batch_size < 1:
            raise ValueError(f"max_batch_size must be an integer >= 1; got {max_batch_size!r}")
        self._pipeline: Pipeline | None = pipeline
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._running: list[Stream | AsyncStream] = []
        self._arrivals = itertools.count()
        self._turn = 0
        self._thread: threading.Thread | None = None
        _schedulers.add(self)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        with self._lock:
            return self._thread is None

    def submit(self, streams: Sequence[Stream | AsyncStream]) -> None:
        """Queue the streams of one call.

        Raises:
            EngineClosedError: `close` was called.
        """
        with self._lock:
            if self._pipeline is None:
                raise EngineClosedError("the engine was closed; make a new one")
            now = time.perf_counter()
            for index, stream in enumerate(streams):
                self._waiting.append(_Entry(self._turn + index, next(self._arrivals), now, stream))
            if self._thread is None and streams:
                self._thread = threading.Thread(
                    target=self._serve, args=(self._pipeline,), name="speckv-scheduler", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End waiting and running streams with `EngineClosedError`, wait for the thread, release the pipeline."""
        with self._lock:
            self._pipeline = None
            streams = [*(entry.stream for entry in self._waiting), *self._running]
            self._waiting.clear()
            thread = self._thread
        for stream in streams:
            stream.cancel()
            stream.put(EngineClosedError("the engine was closed before this answer was finished"))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stop(self) -> None:
        """Cancel waiting and running streams and wait for the thread, which ends at its next step."""
        with self._lock:
            streams = [*(entry.stream for entry in self._waiting), *self._running]
            thread = self._thread
        for stream in streams:
            stream.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """Drop all streams in a forked child: the thread that served them exists in the parent only."""
        self._lock = threading.Lock()
        self._waiting, self._running, self._thread = [], [], None

    def _serve(self, pipeline: Pipeline) -> None:
        time.sleep(_GATHER_SECONDS)
        while batch := self._next_batch():
            _run_batch(pipeline, batch)

    def _next_batch(self) -> list[_Entry]:
        """Take the next batch from the queue; empty, and the thread's last act, when nothing waits."""
        with self._lock:
            self._running = []
            waiting = []
            for entry in self._waiting:
                if entry.stream.request.cancelled.is_set():
                    entry.stream.put(asyncio.CancelledError())
                else:
                    waiting.append(entry)
            if not waiting:
                self._waiting, self._thread = [], None
                return []
            waiting.sort(key=lambda entry: (entry.turn, entry.arrival))
            first = waiting[0]
            batch, others = [first], []
            key = first.stream.request.batch_key
            longest = total = len(first.stream.request.prompt_ids)
            for entry in waiting[1:]:
                request = entry.stream.request
                tokens = len(request.prompt_ids)
                padded = (len(batch) + 1) * max(longest, tokens)
                if (
                    key is not None
                    and len(batch) < self._max_batch_size
                    and request.batch_key == key
                    and padded <= _MAX_PADDING * (total + tokens)
                ):
                    batch.append(entry)
                    longest, total = max(longest, tokens), total + tokens
                else:
                    others.append(entry)
            self._waiting, self._turn = others, first.turn
            self._running = [entry.stream for entry in batch]
            return batch


def _run_batch(pipeline: Pipeline, batch: Sequence[_Entry]) -> None:
    """Run a batch and hand each stream its result or error."""
    started = time.perf_counter()
    results = _results(pipeline, [entry.stream for entry in batch])
    for entry, result in zip(batch, results, strict=True):
        if isinstance(result, Generation):
            result = replace(result, timings={"queued": started - entry.queued_at} | result.timings)
        entry.stream.put(result)


def _results(pipeline: Pipeline, streams: Sequence[Stream | AsyncStream]) -> Sequence[Generation | BaseException]:
    try:
        return pipeline.run([stream.request for stream in streams])
    except Exception as error:
        if len(streams) == 1:
            return [error]
        # One prompt must not fail its neighbours, so each runs again alone. Text that was streamed cannot be taken
        # back, so a stream that has started gets the error.
        return [error if stream.started else _results(pipeline, [stream])[0] for stream in streams]
    except BaseException as error:  # a reader must never wait for a thread that has died
        return [error] * len(streams)


def _stop_all() -> None:
    """Stop every scheduler at exit: a daemon thread that is inside torch then would abort the process."""
    for scheduler in list(_schedulers):
        scheduler.stop()


def _forget_all() -> None:
    for scheduler in list(_schedulers):
        scheduler.forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
