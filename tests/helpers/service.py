"""A real service in a thread: uvicorn on a free port of this machine."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
