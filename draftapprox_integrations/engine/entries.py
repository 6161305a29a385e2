"""A request in the queue or in the running batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..results import Generation
from .requests import Request
from .streams import AsyncStream, Stream


@dataclass(eq=False)
class Entry:
    """A waiting or running stream, ordered by turn, then by arrival.

    Attributes:
        company: What it may share after a failure in company: "all", "steps" (prefilled by itself), or "none".
    """

    turn: int
    arrival: int
    queued_at: float
    stream: Stream | AsyncStream
    company: Literal["all", "steps", "none"] = "all"
    started_at: float = 0.0

    @property
    def request(self) -> Request:
        """What is asked for."""
        return self.stream.request

    def put(self, result: Generation | Exception) -> None:
        """Hand the stream its result, with the time that it waited, or its error."""
        if isinstance(result, Generation):
            result = replace(result, timings={"queued": self.started_at - self.queued_at} | result.timings)
        self.stream.put(result)
