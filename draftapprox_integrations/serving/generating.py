"""Run jobs on the engine's running batch: all answers, or their pieces as they are written, until the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from ..engine.engine import SpecKV
from ..engine.streams import AsyncStream
from ..errors import DraftApproxError, InvalidInputError, PromptTooLongError
from ..results import Generation
from .answer_jobs import Job
from .errors import ServiceError, status_of

Result = TypeVar("Result")


_CLIENT_LEFT = 499  # nobody reads this answer; the number is for logs


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn errors of the package into answers as OpenAI gives them: what is wrong with a request has status 400."""
    try:
        yield
    except PromptTooLongError as error:
        raise ServiceError(400, str(error), code="context_length_exceeded") from error
    except InvalidInputError as error:
        raise ServiceError(400, str(error), code="invalid_value") from error
    except DraftApproxError as error:
        raise ServiceError(status_of(error), str(error)) from error


async def submit(engine: SpecKV, jobs: Sequence[Job]) -> list[AsyncStream]:
    """Queue jobs; return one stream per job."""
    streams: list[AsyncStream] = []
    try:
        for job in jobs:
            streams += await engine.asubmit(job.prompt, **job.options)
    except BaseException:
        cancel(streams)
        raise
    return streams


def cancel(streams: Sequence[AsyncStream]) -> None:
    """End what is still written."""
    for stream in streams:
        stream.cancel()


async def write_all(engine: SpecKV, jobs: Sequence[Job]) -> list[Generation]:
    """Wait for all answers; the first error ends the others."""
    streams = await submit(engine, jobs)
    try:
        return [await stream.result() for stream in streams]
    finally:
        cancel(streams)


async def pieces(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, str | Generation], None]:
    """Iterate over pieces of text as they are written, each with the index of its stream; a result ends a stream."""
    arrived: asyncio.Queue[tuple[int, str | Generation | Exception]] = asyncio.Queue()

    async def read(index: int, stream: AsyncStream) -> None:
        try:
            async for piece in stream.pieces():
                arrived.put_nowait((index, piece))
            assert stream.generation is not None
            arrived.put_nowait((index, stream.generation))
        except Exception as error:
            arrived.put_nowait((index, error))

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        unfinished = len(streams)
        while unfinished:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            yield index, item
            unfinished -= isinstance(item, Generation)
    finally:
        for reader in readers:
            reader.cancel()


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        ServiceError: the client has left before its end.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise _client_left() from None


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for work on a request whose body was read; cancel it when the client closes the connection.

    Raises:
        ServiceError: the client has left, so that nobody reads the error.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _client_left()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _client_left() -> ServiceError:
    return ServiceError(_CLIENT_LEFT, "the client closed its connection")
