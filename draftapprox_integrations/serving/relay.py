"""Send a request on to an upstream and its answer back, byte by byte; whoever leaves takes the upstream along."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .errors import error_response

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

# RFC 9110, 7.6.1: of one connection only. The last three say what the next connection says anew.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"expect", b"host", b"content-length",
}  # fmt: skip
_SERVERS_OWN = {b"date", b"server"}  # which the server of this application adds to every answer
_KEEP_ALIVE_SECONDS = 2.0  # servers close idle connections after 5 s; a request must not meet one that closes


@dataclass(frozen=True)
class Outgoing:
    """What is sent to the upstream.

    Attributes:
        request: The request.
        headers: Headers to add to the answer.
        report: Object to put under "draftapprox" into an answer in JSON; None leaves the answer as it comes.
    """

    request: httpx.Request
    headers: Headers = field(default_factory=list)
    report: dict[str, Any] | None = None


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that are for the other end, not for this connection; names in lower case."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {one.strip().lower() for name, value in pairs if name == b"connection" for one in value.split(b",")}
    return [(name, value) for name, value in pairs if name not in _HOP_BY_HOP and name not in named]


def new_client(connect_seconds: float, read_seconds: float) -> httpx.AsyncClient:
    """A client that keeps no cookies and follows no redirects: both are the business of who asked."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(read_seconds, connect=connect_seconds),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=_KEEP_ALIVE_SECONDS),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
    )


class Body:
    """The body of an incoming request, to be read once."""

    def __init__(self, request: Request):
        self._request = request
        self.read = asyncio.Event()

    async def whole(self) -> bytes:
        """Return all of it."""
        body = await self._request.body()
        self.read.set()
        return body

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield it as it comes."""
        async for chunk in self._request.stream():
            if chunk:
                yield chunk
        self.read.set()


class Relay(Response):
    """The upstream's answer.

    Args:
        client: Sends the request.
        body: The body of the incoming request.
        prepare: Makes the request to send.
    """

    def __init__(self, client: httpx.AsyncClient, body: Body, prepare: Callable[[], Awaitable[Outgoing]]):
        super().__init__()
        self._client, self._body, self._prepare = client, body, prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a client that leaves ends whatever is being done for it."""
        working = asyncio.create_task(self._relay(scope, receive, send))
        leaving = asyncio.create_task(self._client_leaves(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _client_leaves(self, receive: Receive) -> None:
        await self._body.read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        outgoing: Outgoing | None = None
        try:
            outgoing = await self._prepare()
            response = await self._client.send(outgoing.request, stream=True)
        except ClientDisconnect:
            return
        except httpx.TransportError as error:
            refusal = _refusal(error)
            for name, value in outgoing.headers if outgoing else ():
                refusal.raw_headers.append((name, value))
            await refusal(scope, receive, send)
            return
        try:
            headers = [pair for pair in end_to_end(response.headers.raw) if pair[0] not in _SERVERS_OWN]
            headers += outgoing.headers
            if outgoing.report is not None and _is_json(response):
                content = _with_report(await response.aread(), outgoing.report)
                await _start(send, response.status_code, [*headers, (b"content-length", b"%d" % len(content))])
                await send({"type": "http.response.body", "body": content})
                return
            lengths = [(b"content-length", length.encode()) for length in response.headers.get_list("content-length")]
            await _start(send, response.status_code, headers + lengths[:1])
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.TransportError as error:
            # The answer has begun, so only a connection that breaks off can tell the client that it is not whole.
            logger.warning("The upstream broke off its answer: %s", _reason(error))
            raise
        finally:
            await response.aclose()


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


def _refusal(error: httpx.TransportError) -> Response:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return error_response(504, f"the upstream did not answer in time ({_reason(error)}); ask for less or try again")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return error_response(502, f"the upstream cannot be reached ({_reason(error)}); check that it runs, and where")
    return error_response(502, f"the upstream ended the connection without an answer ({_reason(error)})")


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _is_json(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == "application/json" and "content-encoding" not in response.headers


def _with_report(body: bytes, report: dict[str, Any]) -> bytes:
    """The answer with the report in it; unchanged if it is no JSON object."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return json.dumps(read | {"draftapprox": report}).encode() if isinstance(read, dict) else body
