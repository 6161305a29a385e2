"""An OpenAI-compatible upstream: `transformers serve` with a real model, behind a recorder of what arrives."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

_PATIENCE = 60  # seconds until a test that hangs fails


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine; gives its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    started = threading.Event()
    bound: list[int] = []

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if server.started:
            bound.append(server.servers[0].sockets[0].getsockname()[1])
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(_PATIENCE)
        assert bound, "the server did not start"
        yield f"http://127.0.0.1:{bound[0]}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Arrived:
    """A request as the upstream got it.

    Attributes:
        left: Set once its client has left before the answer was complete.
    """

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Recorder:
    """ASGI middleware that records requests, and hands each on unchanged."""

    def __init__(self, app: Any):
        self.app, self.requests = app, list[Arrived]()

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        query = scope["query_string"].decode()
        arrived = Arrived(
            scope["method"],
            scope["raw_path"].decode() + (f"?{query}" if query else ""),
            [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]],
        )
        self.requests.append(arrived)

        async def receive_and_record() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                arrived.body += message.get("body", b"")
            elif message["type"] == "http.disconnect":
                arrived.left.set()
            return message

        await self.app(scope, receive_and_record, send)


def transformers_server(folder: str) -> FastAPI:
    """The application of `transformers serve FOLDER`, as far as it is about text."""
    manager, state = ModelManager(device="cpu", dtype="float32", force_model=folder), GenerationState()
    return build_server(
        manager,
        ChatCompletionHandler(manager, state),
        completion_handler=CompletionHandler(manager, state),
        response_handler=None,
        transcription_handler=None,
        systemone_handler=None,
        generation_state=state,
    )
