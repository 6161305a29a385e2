"""The state of one service: its compressor, limits, threads, metrics, and whether it is stopping."""

from __future__ import annotations

import asyncio

from fastapi import Request

from ..specpc.compressor import SpecPC
from .metrics import Metrics
from .settings import ServiceSettings
from .workers import Workers

_POLL_SECONDS = 0.02


class Service:
    """What the routes of one service share.

    Args:
        compressor: What compresses.
        settings: Limits.

    Attributes:
        workers: Threads that compress.
        metrics: Counters of this service.
        in_flight: Requests that are being served.
        draining: Whether the service is stopping: it takes no more requests.
    """

    def __init__(self, compressor: SpecPC, settings: ServiceSettings):
        self.compressor, self.settings = compressor, settings
        self.workers = Workers(settings.workers, settings.queue)
        self.metrics = Metrics(lambda: self.workers.waiting)
        self.in_flight = 0
        self.draining = False

    def enter(self) -> None:
        """Count a request that begins."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)

    def leave(self) -> None:
        """Count a request that ended."""
        self.in_flight -= 1
        self.metrics.in_flight.set(self.in_flight)

    async def drain(self) -> bool:
        """Take no more requests and wait for those that run; return whether they finished within the graceful time."""
        self.draining = True
        end = asyncio.get_running_loop().time() + self.settings.graceful_seconds
        while self.in_flight or self.workers.running:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    @property
    def is_ready(self) -> bool:
        """Whether it takes further requests."""
        return not (self.draining or self.workers.is_full or self.in_flight > self.settings.max_requests)


def service_of(request: Request) -> Service:
    """The service of a request, in a route."""
    service: Service = request.app.state.service
    return service
