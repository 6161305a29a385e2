"""The engine's queue and who serves it: continuous batching.

Requests join the running batch between its steps, as soon as a row is free, and leave it when they are finished.
Scheduling is fair: calls take turns, one prompt each, so a call with a thousand prompts does not delay one with a
single prompt. Waiting requests of similar lengths are prefilled together.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakSet

import torch

from ..decoding.cache import NoSlotsError
from ..errors import EngineClosedError, InvalidInputError
from .entries import Entry
from .grouping import next_group
from .pipeline import Pipeline
from .running import Row, RunningBatch
from .streams import AsyncStream, Stream
from .whole import run_whole

_GATHER_SECONDS = 0.003  # how long an idle engine waits for further requests before it forms the first batch

# All schedulers of this process, for its exit and for forked children.
_schedulers: WeakSet[Scheduler] = WeakSet()


class Scheduler:
    """Queues streams and runs them through the pipeline in one running batch.

    A call that waits for its results serves itself in its own thread while nothing else is queued; a second team of
    OpenMP threads beside its own would slow both. With the first stream of another call a thread of the scheduler takes
    over. That thread lives only while there is work, so an idle engine is garbage-collected with its last user.

    Args:
        pipeline: Runs what comes before the steps.
        max_batch_size: Most rows of the running batch, >= 1.

    Raises:
        ValueError: `max_batch_size` is not a positive integer.
    """

    def __init__(self, pipeline: Pipeline, max_batch_size: int):
        if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int) or max_batch_size < 1:
            raise ValueError(f"max_batch_size must be an integer >= 1; got {max_batch_size!r}")
        self._pipeline: Pipeline | None = pipeline
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._waiting: list[Entry] = []
        self._running: list[Entry] = []
        self._batch: RunningBatch | None = None  # outlives the thread where its buffers are worth keeping
        self._arrivals = itertools.count()
        self._turn = 0
        self._server: threading.Thread | None = None  # who takes entries from the queue; None while it is empty
        self._is_single_call = False  # everything queued is of the call whose thread serves it
        self._thread: threading.Thread | None = None  # the last that was started here
        self._idle = threading.Event()
        self._idle.set()
        _schedulers.add(self)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return self._idle.is_set()

    def submit(self, streams: Sequence[Stream | AsyncStream]) -> None:
        """Queue the streams of one call.

        Raises:
            EngineClosedError: `close` was called.
        """
        with self._lock:
            pipeline = self._enqueue(streams)
            if self._server is None and streams:
                self._start_thread(pipeline, _GATHER_SECONDS)

    def run(self, streams: Sequence[Stream]) -> None:
        """Queue the streams of a call that waits for their results, and serve them here while they are alone.

        Raises:
            EngineClosedError: `close` was called.
            InvalidInputError: the engine is inside this thread already, which would wait for itself.
        """
        current = threading.current_thread()
        if self._server is current:
            raise InvalidInputError(
                "the engine was called by a logits processor or stopping criterion that it runs itself, and would wait "
                "for itself. Use another engine there."
            )
        pipeline = None
        try:
            with self._lock:
                pipeline = self._enqueue(streams)
                if self._server is not None or not streams:
                    return
                self._server, self._is_single_call = current, True
                self._idle.clear()
            # The caller's autocast is not the engine's: answers must not depend on who serves.
            with torch.autocast(pipeline.target.device.type, enabled=False):
                self._serve_all(pipeline)
        except BaseException:  # as Ctrl-C
            with self._lock:
                if pipeline is not None and self._server is current:
                    # What others have queued in the meantime has not begun, and is served without this thread.
                    own = set(map(id, streams))
                    self._waiting = [entry for entry in self._waiting if id(entry.stream) not in own]
                    self._running, self._batch = [], None
                    self._hand_over(pipeline)
            raise

    def close(self) -> None:
        """End waiting and running streams with `EngineClosedError`, wait for the last step, release the pipeline."""
        with self._lock:
            self._pipeline = None
            streams = [entry.stream for entry in [*self._waiting, *self._running]]
            self._waiting.clear()
        for stream in streams:
            stream.cancel()
            stream.put(EngineClosedError("the engine was closed before this answer was finished"))
        self._wait()

    def stop(self) -> None:
        """Cancel waiting and running streams and wait for the step in progress, the last one."""
        with self._lock:
            streams = [entry.stream for entry in [*self._waiting, *self._running]]
        for stream in streams:
            stream.cancel()
        self._wait()

    def forget(self) -> None:
        """Drop all streams in a forked child: the thread that served them exists in the parent only."""
        self._lock, self._idle = threading.Lock(), threading.Event()
        self._idle.set()
        self._waiting, self._running, self._server, self._thread, self._batch = [], [], None, None, None

    def _wait(self) -> None:
        """Wait until nothing is served, unless this is called by what is."""
        if self._server is threading.current_thread():
            return
        self._idle.wait()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()  # what it still holds is to go now

    def _enqueue(self, streams: Sequence[Stream | AsyncStream]) -> Pipeline:
        """Add streams to the queue; the lock is held."""
        if self._pipeline is None:
            raise EngineClosedError("the engine was closed; make a new one")
        now = time.perf_counter()
        for index, stream in enumerate(streams):
            self._waiting.append(Entry(self._turn + index, next(self._arrivals), now, stream))
        self._is_single_call = self._is_single_call and not streams
        return self._pipeline

    # ------------------------------------------------------------------ who serves

    def _start_thread(self, pipeline: Pipeline, delay: float = 0.0) -> None:
        """Let a thread serve the queue; the lock is held."""
        self._server = self._thread = threading.Thread(
            target=self._serve, args=(pipeline, delay), name="speckv-scheduler", daemon=True
        )
        self._idle.clear()
        self._thread.start()

    def _hand_over(self, pipeline: Pipeline) -> None:
        """Leave what is queued and runs to a thread of the scheduler, or become idle; the lock is held."""
        self._is_single_call = False
        if self._waiting or self._running:
            self._start_thread(pipeline)
            return
        self._server = None
        if self._batch is not None and not self._batch.keeps_buffers:
            self._batch = None
        self._idle.set()

    def _serve(self, pipeline: Pipeline, delay: float) -> None:
        time.sleep(delay)
        try:
            self._serve_all(pipeline)
        except BaseException as error:  # a reader must never wait for a thread that has died
            with self._lock:
                entries = [*self._waiting, *self._running]
                self._waiting, self._running, self._batch = [], [], None
                self._hand_over(pipeline)
            for entry in entries:
                entry.stream.put(error)
            if not isinstance(error, Exception):
                raise

    def _serve_all(self, pipeline: Pipeline) -> None:
        rows = min(self._max_batch_size, pipeline.max_rows or self._max_batch_size)
        while True:
            if self._batch is not None and self._batch.parked is not None and len(self._batch.rows) < rows:
                self._batch.resume()
            group = self._take_group(pipeline, rows)
            if group is None:
                return
            if group:
                in_slots = pipeline.decodes_in_slots(group[0].request)
                if in_slots and self._batch is not None and len(self._batch.rows) == rows:
                    self._batch.park()
                self._guarded(pipeline, group, self._admit if in_slots else self._run_whole)
            if self._batch is not None and self._batch.rows:
                self._step(pipeline, self._batch)

    def _take_group(self, pipeline: Pipeline, rows: int) -> list[Entry] | None:
        """Take the entries to start now from the queue.

        Returns:
            Entries to prefill together, or to run as a whole batch; empty if none can start yet. None, the last act
            here, when nothing waits or runs, or when the queue is no longer this thread's alone.
        """
        with self._lock:
            if self._server is not self._thread and not self._is_single_call:
                self._hand_over(pipeline)
                return None
            waiting = []
            for entry in self._waiting:
                if entry.request.cancelled.is_set():
                    entry.stream.put(asyncio.CancelledError())
                else:
                    waiting.append(entry)
            waiting.sort(key=lambda entry: (entry.turn, entry.arrival))
            self._waiting = waiting
            if not waiting:
                if not self._running:
                    self._hand_over(pipeline)
                    return None
                return []
            group = next_group(waiting, self._running, self._batch, pipeline, rows, self._max_batch_size)
            if group:
                chosen = set(map(id, group))
                self._waiting = [entry for entry in waiting if id(entry) not in chosen]
                self._turn = waiting[0].turn
                self._running = [*self._running, *group]
                now = time.perf_counter()
                for entry in group:
                    entry.started_at = now
            return group

    def _guarded(
        self, pipeline: Pipeline, group: Sequence[Entry], start: Callable[[Pipeline, Sequence[Entry]], None]
    ) -> None:
        """Start a group; after a failure each of several entries again by itself."""
        try:
            start(pipeline, group)
        except Exception as error:
            self._leave(group)
            if self._batch is not None:
                self._batch.discard([entry.request for entry in group])
            again = []
            for entry in group:
                # Text that was streamed cannot be taken back, so a stream that has started gets the error.
                if len(group) == 1 or entry.stream.started:
                    entry.stream.put(error)
                else:
                    entry.company = "steps"
                    again.append(entry)
            with self._lock:
                self._waiting += again

    def _leave(self, entries: Sequence[Entry]) -> None:
        """Take entries out of what runs."""
        gone = set(map(id, entries))
        with self._lock:
            self._running = [entry for entry in self._running if id(entry) not in gone]

    def _run_whole(self, pipeline: Pipeline, group: Sequence[Entry]) -> None:
        results = run_whole(pipeline, [entry.request for entry in group])
        self._leave(group)
        for entry, result in zip(group, results, strict=True):
            entry.put(result)

    def _admit(self, pipeline: Pipeline, group: Sequence[Entry]) -> None:
        requests = [entry.request for entry in group]
        prefilled = pipeline.prefill(requests)
        if prefilled is None:
            self._leave(group)
            for entry in group:
                entry.put(pipeline.empty_generation(entry.request, "cancelled"))
            return
        if self._batch is None:
            self._batch = RunningBatch(pipeline)
        try:
            finished = self._batch.admit(requests, prefilled)
        except NoSlotsError:  # seen only once its layers have been filled, or not, as those that attend to images
            pipeline.has_slots, self._batch = False, None
            self._run_whole(pipeline, group)
            return
        self._finish(pipeline, finished)

    def _step(self, pipeline: Pipeline, batch: RunningBatch) -> None:
        try:
            finished = batch.step()
        except Exception as error:
            by_request = {id(entry.request): entry for entry in self._running}
            rows = [*batch.rows, *([batch.parked] if batch.parked is not None else [])]
            entries = {row: by_request[id(row.slot.request)] for row in rows}
            retried = [] if len(entries) == 1 else [row for row in batch.rows if not entries[row].stream.started]
            if not retried or not batch.can_repeat_step:
                self._leave(list(entries.values()))
                for entry in entries.values():
                    entry.stream.put(error)
                self._batch = None
                return
            # Company may have been too much for the memory: those that have not started run again, each by itself.
            batch.drop(retried)
            again = [entries[row] for row in retried]
            self._leave(again)
            for entry in again:
                entry.company = "none"
            with self._lock:
                self._waiting += again
            return
        self._finish(pipeline, finished)

    def _finish(self, pipeline: Pipeline, rows: Sequence[Row]) -> None:
        """Hand the results of finished rows to their streams."""
        now = time.perf_counter()
        by_request = {id(entry.request): entry for entry in self._running}
        for row in rows:
            entry = by_request[id(row.slot.request)]
            self._leave([entry])
            entry.put(row.slot.error or pipeline.generation_of(row.slot, row.prepared, row.started, now))


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
