"""Run the service: uvicorn, with a limit for slow headers and an end that drops no request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InvalidInputError
from .records import logger as request_log
from .service import Service


def run(app: FastAPI, *, started: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish; a second signal does not wait for them.

    Log lines, one JSON object each, go to standard error.

    Args:
        app: From `create_app`.
        started: Called with the service's URL once it listens.

    Returns:
        Whether all requests were finished.

    Raises:
        InvalidInputError: the address cannot be listened on.
    """
    server = ServiceServer(app, started)
    _log_to_stderr()
    server.run(sockets=[server.listening])
    return server.finished


class ServiceServer(uvicorn.Server):
    """A uvicorn server that keeps listening while its requests finish, so that /readyz can say that it stops.

    Args:
        app: From `create_app`; its settings say where to listen.
        started: Called with the URL once requests are served.

    Attributes:
        listening: The socket to run it with.
        url: Where it listens.
        finished: Whether all requests were finished.

    Raises:
        InvalidInputError: the address cannot be listened on.
    """

    def __init__(self, app: FastAPI, started: Callable[[str], None]):
        self._service: Service = app.state.service
        settings = self._service.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(settings.header_seconds),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=max(1, round(settings.keep_alive_seconds)),
                timeout_graceful_shutdown=1,  # `drain` has waited before
            )
        )
        self._started = started
        self._draining: asyncio.Task[None] | None = None
        self.listening = _listen(settings.host, settings.port)
        self.url = _url(self.listening)
        self.finished = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._started(self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; stop at once at the second. Neither is raised again: this is how it ends."""
        if not self.started or self._draining is not None:
            self.finished = not (self._service.in_flight or self._service.workers.running)
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        self.finished = await self._service.drain()
        self.should_exit = True


def _protocol(header_seconds: float) -> type[H11Protocol]:
    class TimedProtocol(H11Protocol):
        """Closes a connection whose request's headers do not arrive in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._is_idle() and self._timer is None:  # the first bytes of a further request
                self._expect()
            super().data_received(data)
            if not self._is_idle():
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect(self) -> None:
            self._timer = self.loop.call_later(header_seconds, self._give_up)

        def _give_up(self) -> None:
            self._timer = None
            if self._is_idle():
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimedProtocol


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        family, kind, protocol, _, address = found  # with the protocol: without it asyncio leaves out TCP_NODELAY
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it would let a second process listen too
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(512)
        except BaseException:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise InvalidInputError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _AsJson(logging.Formatter):
    """A line of the server as JSON. Of an exception only the class: its message may hold a user's text."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage().strip(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def _log_to_stderr() -> None:
    lines, events = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    events.setFormatter(_AsJson())
    request_log.handlers, request_log.propagate = [lines], False
    request_log.setLevel(logging.INFO)
    server_log = logging.getLogger("uvicorn")
    server_log.handlers, server_log.propagate = [events], False
    server_log.setLevel(logging.WARNING)
