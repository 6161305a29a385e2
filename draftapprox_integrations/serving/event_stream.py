"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..engine.streams import AsyncStream
from .errors import ServiceError, error_content
from .generating import cancel, engine_errors

_log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Sends chunks as they come, then `[DONE]`. An error becomes the last event. A client that leaves ends the streams.

    Args:
        chunks: The chunks of the answer.
        streams: What the engine writes for them.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], streams: Sequence[AsyncStream]):
        super().__init__(_events(chunks), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            cancel(self._streams)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    try:
        async with aclosing(chunks):
            with engine_errors():
                async for chunk in chunks:
                    yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ServiceError as error:
        yield _event(error_content(error.status, error.message, param=error.param, code=error.code))
    except Exception:  # the status is sent already, so that nobody else can answer
        _log.exception("an answer was not finished")
        yield _event(error_content(500, "the service failed while it wrote this answer; its log says why"))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
