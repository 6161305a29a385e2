"""Routes for who runs the service: health, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from .errors import error_response
from .schemas import ErrorAnswer
from .service import service_of

router = APIRouter(tags=["operation"])


@router.get("/healthz", response_class=PlainTextResponse, responses={})
async def healthz() -> str:
    """Whether the process is alive."""
    return "ok"


@router.get("/readyz", response_class=PlainTextResponse, responses={503: {"model": ErrorAnswer}})
async def readyz(request: Request) -> Response:
    """Whether it takes requests: not while it stops, or its queue is full."""
    service = service_of(request)
    if service.is_ready:
        return PlainTextResponse("ready")
    return error_response(503, "the service is stopping" if service.draining else "the queue is full")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
