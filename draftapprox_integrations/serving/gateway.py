"""What every request passes before and after its route: token, limits, request id, metrics, log, errors."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DraftApproxError
from .body import read_body, replay
from .errors import ServiceError, error_response, response_of, status_of
from .records import RequestRecord, log_request, place_of, start_record

if TYPE_CHECKING:
    from .service import Service

OPEN = ("/healthz", "/readyz")  # what tells an orchestrator how the service is needs no token


class Gateway:
    """ASGI middleware around all routes of a service, those of other routers and streams included.

    Args:
        app: The routes.
        service: The service's state.
        paths: The paths of the routes, as they are declared.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]):
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = start_record(scope, Headers(scope=scope).get("x-request-id", ""))
        service, is_open = self._service, scope["path"] in OPEN
        service.enter()
        try:
            await self._serve(scope, receive, _noting(send, record, service), record, is_open)
        except asyncio.CancelledError:  # the graceful time is over
            if not record.status:
                answer = error_response(503, "the service stopped before this request was finished")
                await answer(scope, receive, _noting(send, record, service))
            raise
        finally:
            service.leave()
            path = self._declared_path(scope)
            service.metrics.answered(path, record.status, record.seconds(), record.tokens)
            if not is_open:
                log_request(record, path, with_text=service.settings.log_text)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord, is_open: bool) -> None:
        try:
            if not is_open:
                self._check(scope)
            body = await read_body(scope, receive, self._service.settings)
            await self._app(scope, replay(body, receive), send)
            return
        except ServiceError as error:
            answer = response_of(error)
        except DraftApproxError as error:
            answer = error_response(status_of(error), str(error), raised=type(error).__name__)
        except Exception as error:
            record.error = place_of(error)
            answer = error_response(500, f"the service failed; its log has more under request id {record.id}")
        if record.status:  # the answer has begun: a connection that breaks off tells the client
            raise BrokenAnswer from None
        await answer(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises:
        ServiceError: the request is not let in.
        """
        service = self._service
        if service.draining:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise ServiceError(503, "the service is stopping; ask another one", headers)
        token = service.settings.token
        if token is not None:
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), token.encode())
            if kind.lower() != "bearer" or not right:
                raise ServiceError(
                    401, "a request needs the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )
        if service.in_flight > service.settings.max_requests:
            raise ServiceError(
                429, f"{service.settings.max_requests} requests are being served; try again later", {"Retry-After": "1"}
            )

    def _declared_path(self, scope: Scope) -> str:
        """The path as its route declares it: a path that a client made up would be a metric of its own."""
        path = getattr(scope.get("route"), "path", None) or scope["path"]
        return path if path in self._paths else "other"


class BrokenAnswer(Exception):  # noqa: N818  # it ends a connection, and is no error of its own
    """An error after an answer's beginning; the server closes the connection."""


def _noting(send: Send, record: RequestRecord, service: Service) -> Callable[[Message], Awaitable[None]]:
    """`send` that notes the status, and gives the request's id back."""

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = record.id
            if service.draining:
                headers["Connection"] = "close"
        await send(message)

    return noting
