"""The engine's queue and the thread that serves it: continuous batching.

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
from collections.abc import Callable, Hashable, Sequence
from weakref import WeakSet

from ..decoding.cache import NoSlotsError
from ..errors import EngineClosedError
from .entries import Entry
from .pipeline import Pipeline
from .requests import Request
from .running import Row, RunningBatch
from .streams import AsyncStream, Stream
from .whole import run_whole

_GATHER_SECONDS = 0.003  # how long an idle engine waits for further requests before it forms the first batch
_MAX_PADDING = 1.5  # largest allowed ratio of a batch's tokens, padding included, to its prompts' tokens
_SHORT_RATIO = 4  # a request is short beside a row that has yet to write this many times its tokens
_MAX_STALL_TOKENS = 4096  # most prompt tokens, padding included, that several requests may put between two steps


# All schedulers of this process, for its exit and for forked children.
_schedulers: WeakSet[Scheduler] = WeakSet()


class Scheduler:
    """Queues streams and runs them through the pipeline in one running batch.

    The thread lives only while there is work, so an idle engine is garbage-collected with its last user.

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
                self._waiting.append(Entry(self._turn + index, next(self._arrivals), now, stream))
            if self._thread is None and streams:
                self._thread = threading.Thread(
                    target=self._serve, args=(self._pipeline,), name="speckv-scheduler", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End waiting and running streams with `EngineClosedError`, wait for the thread, release the pipeline."""
        with self._lock:
            self._pipeline = None
            streams = [entry.stream for entry in [*self._waiting, *self._running]]
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
            streams = [entry.stream for entry in [*self._waiting, *self._running]]
            thread = self._thread
        for stream in streams:
            stream.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """Drop all streams in a forked child: the thread that served them exists in the parent only."""
        self._lock = threading.Lock()
        self._waiting, self._running, self._thread, self._batch = [], [], None, None

    # ------------------------------------------------------------------ the thread

    def _serve(self, pipeline: Pipeline) -> None:
        time.sleep(_GATHER_SECONDS)
        try:
            self._serve_all(pipeline)
        except BaseException as error:  # a reader must never wait for a thread that has died
            with self._lock:
                entries = [*self._waiting, *self._running]
                self._waiting, self._running, self._batch, self._thread = [], [], None, None
            for entry in entries:
                entry.stream.put(error)
            if not isinstance(error, Exception):
                raise

    def _serve_all(self, pipeline: Pipeline) -> None:
        rows = min(self._max_batch_size, pipeline.max_rows or self._max_batch_size)
        while True:
            if self._batch is not None and self._batch.parked is not None and len(self._batch.rows) < rows:
                self._batch.resume()
            group = self._next_group(pipeline, rows)
            if group is None:
                return
            if group:
                in_slots = pipeline.decodes_in_slots(group[0].request)
                if in_slots and self._batch is not None and len(self._batch.rows) == rows:
                    self._batch.park()
                self._guarded(pipeline, group, self._admit if in_slots else self._run_whole)
            if self._batch is not None and self._batch.rows:
                self._step(pipeline, self._batch)

    def _next_group(self, pipeline: Pipeline, rows: int) -> list[Entry] | None:
        """Take the entries to start now from the queue.

        Returns:
            Entries to prefill together, or to run as a whole batch; empty if none can start yet. None, the thread's
            last act, when nothing waits or runs.
        """
        with self._lock:
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
                    self._thread = None
                    if self._batch is not None and not self._batch.keeps_buffers:
                        self._batch = None
                    return None
                return []
            first, running = waiting[0], self._running
            in_slots = pipeline.decodes_in_slots(first.request)
            room = rows - len(running) + (self._batch is not None and self._batch.parked is not None)
            waits_for_all = first.company == "none" or not in_slots or any(e.company == "none" for e in running)
            if running and waits_for_all:
                return []
            if room < 1:
                # Calls take turns, but a short request does not wait for long ones: it goes first, whatever its turn.
                first = next((entry for entry in waiting if self._may_go_first(entry, pipeline)), first)
                if not self._may_go_first(first, pipeline):
                    return []
                room = 1
            group = [first]
            if first.company == "all":
                limit = min(room, pipeline.max_prefill_rows or room) if in_slots else self._max_batch_size
                self._extend(group, waiting[1:], limit, in_slots, pipeline)
            chosen = set(map(id, group))
            self._waiting = [entry for entry in waiting if id(entry) not in chosen]
            self._turn = waiting[0].turn
            self._running = [*running, *group]
            now = time.perf_counter()
            for entry in group:
                entry.started_at = now
            return group

    def _may_go_first(self, entry: Entry, pipeline: Pipeline) -> bool:
        """Whether a running row should make place: the request is much shorter than what that row has yet to write."""
        batch, request = self._batch, entry.request
        return (
            batch is not None
            and batch.parked is None
            and entry.company == "all"
            and request.max_new_tokens * _SHORT_RATIO <= batch.most_remaining
            and len(request.prompt_ids) <= _MAX_STALL_TOKENS
            and pipeline.decodes_in_slots(request)
        )

    def _extend(
        self, group: list[Entry], others: Sequence[Entry], limit: int, in_slots: bool, pipeline: Pipeline
    ) -> None:
        """Add entries that may be prefilled, or run, with the first of `group` without much padding."""

        def key(request: Request) -> Hashable | None:
            return request.fits_budget if in_slots else request.batch_key

        shared = key(group[0].request)
        longest = total = len(group[0].request.prompt_ids)
        for entry in others:
            if len(group) == limit:
                return
            tokens = len(entry.request.prompt_ids)
            padded = (len(group) + 1) * max(longest, tokens)
            if (
                shared is not None
                and entry.company == "all"
                and pipeline.decodes_in_slots(entry.request) == in_slots
                and key(entry.request) == shared
                and padded <= _MAX_PADDING * (total + tokens)
                and not (self._running and padded > _MAX_STALL_TOKENS)
            ):
                group.append(entry)
                longest, total = max(longest, tokens), total + tokens

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
            for entry in group:
                # Text that was streamed cannot be taken back, so a stream that has started gets the error.
                if len(group) == 1 or entry.stream.started:
                    entry.stream.put(error)
                else:
                    entry.company = "steps"
            with self._lock:
                self._waiting += [entry for entry in group if entry.company != "all" and not entry.stream.started]

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
