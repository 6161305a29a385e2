"""OpenAI's endpoints for chats, completions and models, over one engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ..engine.engine import SpecKV
from ..engine.streams import AsyncStream
from ..results import Generation
from .answer_jobs import Job, Limits, chat_jobs, completion_jobs
from .errors import ServiceError
from .event_stream import EventStream
from .generating import engine_errors, pieces, read_body, submit, unless_client_leaves, write_all
from .openai_answers import AnswerLayout, ChatLayout, TextLayout
from .openai_schema import ChatRequest, CompletionRequest, read_request


def completions_router(
    engine: SpecKV,
    *,
    name: str,
    default_tokens: int = Limits.default_tokens,
    max_tokens: int = Limits.max_tokens,
    max_answers: int = Limits.max_answers,
    timeout: float | None = Limits.timeout,
) -> APIRouter:
    """Routes `/v1/chat/completions`, `/v1/completions` and `/v1/models`. Requests share the engine's running batch.

        app = FastAPI()
        add_error_handlers(app)
        app.include_router(completions_router(engine, name="my-model"))

    Args:
        engine: Writes the answers. It stays open when the service ends.
        name: The model's name in requests and answers.
        default_tokens, max_tokens, max_answers, timeout: As in `Limits`.
    """
    limits = Limits(default_tokens, max_tokens, max_answers, timeout)
    created = int(time.time())
    router = APIRouter()

    def check_model(asked: str) -> None:
        if asked != name:
            message = f"there is no model {asked[:200]!r} here; use {name!r}"
            raise ServiceError(404, message, param="model", code="model_not_found")

    def describe() -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": created, "owned_by": "draftapprox"}
        return model | {"context_window": engine.target.context_window}

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The model that answers."""
        return {"object": "list", "data": [describe()]}

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        """One model."""
        check_model(model)
        return describe()

    @router.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(request: Request) -> Response:
        """The assistant's next message."""
        asked = read_request(ChatRequest, await read_body(request))
        check_model(asked.model)
        with engine_errors():
            jobs = await asyncio.to_thread(chat_jobs, engine, asked, limits)
            layout = ChatLayout(name, [job.call for job in jobs if job.call is not None], asked.includes_usage)
            return await _respond(engine, request, jobs, layout, bool(asked.stream))

    @router.post("/v1/completions", response_model=None)
    async def create_completion(request: Request) -> Response:
        """What follows a prompt."""
        asked = read_request(CompletionRequest, await read_body(request))
        check_model(asked.model)
        with engine_errors():
            jobs = await asyncio.to_thread(completion_jobs, engine, asked, limits)
            layout = TextLayout(name, asked.n or 1, asked.includes_usage)
            return await _respond(engine, request, jobs, layout, bool(asked.stream))

    return router


async def _respond(
    engine: SpecKV, request: Request, jobs: Sequence[Job], layout: AnswerLayout, streamed: bool
) -> Response:
    if streamed:
        streams = await submit(engine, jobs)
        return EventStream(_chunks(streams, layout), streams)
    written = await unless_client_leaves(request, write_all(engine, jobs))
    return JSONResponse(layout.whole(written))


async def _chunks(streams: Sequence[AsyncStream], layout: AnswerLayout) -> AsyncGenerator[dict[str, Any], None]:
    for chunk in layout.first_chunks():
        yield chunk
    written: dict[int, Generation] = {}
    async with aclosing(pieces(streams)) as arriving:
        async for index, item in arriving:
            if isinstance(item, Generation):
                written[index] = item
                for chunk in layout.last_chunks(index, item):
                    yield chunk
            elif (shown := layout.text_chunk(index, item)) is not None:
                yield shown
    for chunk in layout.usage_chunks([written[index] for index in range(len(streams))]):
        yield chunk
