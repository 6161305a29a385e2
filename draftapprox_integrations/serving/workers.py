"""Threads that compress, and the queue in front of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from .errors import ServiceError

Result = TypeVar("Result")
_LONGEST_WAIT = 60  # seconds that a client is told to wait, at most


class Workers:
    """Runs functions in a few threads; some requests may wait, further ones are refused.

    Args:
        workers: Number of threads.
        queue: Most requests that wait.

    Attributes:
        waiting: Requests that wait.
        running: Functions that run, those included whose client has left.
    """

    def __init__(self, workers: int, queue: int):
        self._workers, self._queue = workers, queue
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="draftapprox-worker")
        self._free = asyncio.Semaphore(workers)
        self._typical = 1.0  # seconds of a function, a running mean
        self.waiting = self.running = 0

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self._free.locked() and self.waiting >= self._queue

    async def run(self, request: Request, function: Callable[[], Result]) -> Result:
        """Run `function` in a thread.

        Args:
            request: The request it belongs to. One whose client leaves gives its place in the queue to the next.
            function: What to run; once it runs, it runs to its end.

        Raises:
            ServiceError: 429: too many wait. 499: the client left while it waited.
        """
        if self.is_full:
            seconds = min(_LONGEST_WAIT, math.ceil(self._typical * (self.waiting + 1) / self._workers))
            raise ServiceError(
                429,
                f"{self.waiting} requests wait already, no more may; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )
        await self._enter(request)
        started = time.perf_counter()
        self.running += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, function)

        def done(_: object) -> None:  # also where nobody waits for it any more
            self.running -= 1
            self._typical += 0.2 * (time.perf_counter() - started - self._typical)
            self._free.release()

        future.add_done_callback(done)
        return await asyncio.shield(future)

    async def _enter(self, request: Request) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        self.waiting += 1
        turn, leaving = asyncio.ensure_future(self._free.acquire()), asyncio.ensure_future(_leaving(request))
        try:
            await asyncio.wait((turn, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                raise ServiceError(499, "the client left while its request waited")
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._free.release()
            turn.cancel()
            raise
        finally:
            leaving.cancel()
            self.waiting -= 1

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _leaving(request: Request) -> None:
    """Return when the client leaves. The body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
