"""The service as a FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from .. import __version__
from ..specpc.compressor import SpecPC
from . import compression, health, rerank
from .errors import add_error_handlers
from .gateway import OPEN, Gateway
from .schemas import ERRORS
from .service import Service
from .settings import ServiceSettings


def create_app(
    compressor: SpecPC, settings: ServiceSettings | None = None, *, routers: Sequence[APIRouter] = ()
) -> FastAPI:
    """Make the service.

        app = create_app(SpecPC("default"), ServiceSettings(token="..."))

    Token, limits of bodies and of requests at a time, metrics, log, drain and the layout of errors hold for all routes,
    those of `routers` and their streams included. The queue holds for compressions; other routers have their own.

    Args:
        compressor: What compresses.
        settings: Limits; None: the defaults. Host and port are for who runs the application, see `server.run`.
        routers: Further routes. `records.record_of(request)` is where they note tokens for metrics and log,
            `service.service_of(request)` has the compressor and the workers.

    Raises:
        InvalidInputError: the compressor's settings do not fit each other.
    """
    _ = compressor.scorer  # what cannot work is reported now
    service = Service(compressor, settings or ServiceSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.draining = True
        service.workers.close()

    app = FastAPI(title="draftapprox", version=__version__, lifespan=lifespan, responses=ERRORS, redirect_slashes=False)
    app.state.service = service
    add_error_handlers(app)
    paths = {getattr(route, "path", "") for route in app.routes}
    for router in (compression.router, rerank.router, health.router, *routers):
        app.include_router(router)
        paths |= {getattr(route, "path", "") for route in router.routes}
    app.add_middleware(Gateway, service=service, paths=frozenset(paths))
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Add the bearer token to the OpenAPI page."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in OPEN else [{"token": []}, {}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
