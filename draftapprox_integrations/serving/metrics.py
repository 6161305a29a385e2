"""Metrics of one service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts requests, seconds and tokens, in a registry of its own.

    Args:
        waiting: Returns how many requests wait for a worker.
    """

    def __init__(self, waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        name = "draftapprox_"
        self._requests = Counter(name + "requests", "Answered requests.", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            name + "request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._before = Counter(name + "tokens_before", "Tokens of texts before compression.", registry=self.registry)
        self._after = Counter(name + "tokens_after", "Tokens of texts after compression.", registry=self.registry)
        self.in_flight = Gauge(name + "requests_in_flight", "Requests being served.", registry=self.registry)
        Gauge(name + "queue_depth", "Requests that wait for a worker.", registry=self.registry).set_function(waiting)

    def answered(self, path: str, status: int, seconds: float, tokens: tuple[int, int] | None) -> None:
        """Count an answered request.

        Args:
            path: The path as it was declared, so that there are few different ones.
            status: The HTTP status.
            seconds: How long it took.
            tokens: Tokens before and after compression, where something was compressed.
        """
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if tokens is not None:
            self._before.inc(tokens[0])
            self._after.inc(tokens[1])

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
