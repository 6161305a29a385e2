"""A real service in a thread: uvicorn on a free port of this machine."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import APIRouter

from draftapprox_integrations import SpecPC
from draftapprox_integrations.serving.app import create_app
from draftapprox_integrations.serving.server import ServiceServer
from draftapprox_integrations.serving.service import Service
from draftapprox_integrations.serving.settings import ServiceSettings

_PATIENCE = 60


@dataclass(frozen=True)
class Running:
    """A service that runs: where, and its state."""

    url: str
    service: Service
    server: ServiceServer


class HeldScorer:
    """A scorer that waits until it is let go; every sentence is as good as the others.

    Attributes:
        begun: Number of calls that began.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._free = threading.Event()

    def score(self, query: str, passages: Any, sentences: Any) -> list[torch.Tensor]:
        self.begun += 1
        assert self._free.wait(_PATIENCE)
        return [torch.ones(len(group)) for group in sentences]

    def let_go(self) -> None:
        self._free.set()

    def __enter__(self) -> "HeldScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


def wait_until(what: Callable[[], object]) -> None:
    """Return once `what()` is true."""
    deadline = time.monotonic() + _PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@contextmanager
def running(compressor: SpecPC, *, routers: Sequence[APIRouter] = (), **settings: Any) -> Iterator[Running]:
    app = create_app(compressor, ServiceSettings(port=0, **settings), routers=routers)
    ready = threading.Event()
    server = ServiceServer(app, lambda _: ready.set())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server.listening]})
    thread.start()
    try:
        assert ready.wait(_PATIENCE)
        yield Running(server.url, app.state.service, server)
    finally:
        server.should_exit = True
        thread.join()
