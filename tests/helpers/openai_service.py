"""A real server on loopback with the service's routes, for real clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from draftapprox_integrations import SpecKV
from draftapprox_integrations.serving.completions import completions_router
from draftapprox_integrations.serving.errors import add_error_handlers
from tests.helpers.upstream import running

NAME = "our/model"


@contextmanager
def serving(*routers: APIRouter) -> Iterator[str]:
    """Serve routers in a thread; gives the address, without a path."""
    app = FastAPI()
    add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    with running(app) as address:
        yield address


@contextmanager
def serving_completions(engine: SpecKV, *, name: str = NAME, **limits: Any) -> Iterator[str]:
    """Serve OpenAI's endpoints over an engine; gives the base URL of clients."""
    with serving(completions_router(engine, name=name, **limits)) as address:
        yield f"{address}/v1"
