"""A real server on loopback with the service's routes, for real clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI

from draftapprox_integrations import SpecKV
from draftapprox_integrations.serving.completions import completions_router
from draftapprox_integrations.serving.errors import add_error_handlers

NAME = "our/model"


@contextmanager
def serving(*routers: APIRouter) -> Iterator[str]:
    """Serve routers in a thread; gives the address, without a path."""
    app = FastAPI()
    add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving_completions(engine: SpecKV, *, name: str = NAME, **limits: Any) -> Iterator[str]:
    """Serve OpenAI's endpoints over an engine; gives the base URL of clients."""
    with serving(completions_router(engine, name=name, **limits)) as address:
        yield f"{address}/v1"
