"""Bodies of requests: read whole before a route runs, within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from .errors import ServiceError
from .settings import ServiceSettings

_DISCARDED = 8  # times the longest body that is read on, so that the client hears why


class BodyReader:
    """Reads one body.

    Args:
        receive: Of the request.
        limit: Most bytes.
        seconds: Within which it must have arrived.
    """

    def __init__(self, receive: Receive, limit: int, seconds: float):
        self._receive, self._limit = receive, limit
        self._end = asyncio.get_running_loop().time() + seconds

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            ServiceError: 408: too slow. 413: too long. 499: the client left.
        """
        parts, size, more = [], 0, True
        while more:
            part, more = await self._next()
            parts.append(part)
            size += len(part)
            if size > self._limit:
                await self.discard(size, more)
        return b"".join(parts)

    async def discard(self, size: int = 0, more: bool = True) -> None:
        """Read on without keeping anything: most clients read an answer only once they have sent their body.

        Raises:
            ServiceError: 413, once there is nothing more, or too much; 499: the client left.
        """
        try:
            while more and size <= _DISCARDED * self._limit:
                part, more = await self._next()
                size += len(part)
        except ServiceError as error:
            if error.status == 499:
                raise
        message = f"the body has more than {self._limit} bytes, the most that this service takes"
        raise ServiceError(413, message, {"Connection": "close"} if more else None)

    async def _next(self) -> tuple[bytes, bool]:
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError(408, "the request's body arrived too slowly", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ServiceError(499, "the client left before its request was whole")
        return message.get("body", b""), message.get("more_body", False)


async def read_body(scope: Scope, receive: Receive, settings: ServiceSettings) -> bytes:
    """Read a request's body.

    Raises:
        ServiceError: 408, 413 or 499, as `BodyReader.read`.
    """
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD") and "content-length" not in headers and "transfer-encoding" not in headers:
        return b""
    reader = BodyReader(receive, settings.max_body_bytes, settings.body_seconds)
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > settings.max_body_bytes:
        if headers.get("expect", "").lower() == "100-continue":  # it has sent nothing yet, and will not
            raise ServiceError(413, f"the body has more than {settings.max_body_bytes} bytes", {"Connection": "close"})
        await reader.discard()
    return await reader.read()


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, and after that what comes: that the client leaves."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying
