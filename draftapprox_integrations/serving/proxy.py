"""A proxy in front of an OpenAI-compatible API that shortens long context in requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..specpc.compressor import SpecPC
from .dropped import DroppedStore, dropped_content
from .errors import ServiceError
from .outcome import OWN_HEADERS, Outcome, Wish
from .proxy_settings import ProxySettings, upstream_base
from .relay import Body, Outgoing, Relay, end_to_end, new_client
from .shortening import Kind, Shortened, shorten

logger = logging.getLogger(__name__)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def proxy_router(compressor: SpecPC, upstream: str, settings: ProxySettings | None = None) -> APIRouter:
    """Routes that pass `/v1/*` on to an upstream, with long context in requests shortened.

    Args:
        compressor: Shortens the context.
        upstream: The base URL that clients of the upstream would use, such as "http://localhost:8000/v1".
        settings: None: the defaults.

    Returns:
        A router, to be included after every other one with paths below `/v1/`: it answers all that are left.

    Raises:
        InvalidInputError: `upstream` is no address.
    """
    proxy = _Proxy(compressor, upstream_base(upstream), settings or ProxySettings())
    router = APIRouter(lifespan=proxy.lifespan, tags=["proxy"])
    router.add_api_route("/v1/dropped/{key}", proxy.dropped, methods=["GET"])
    router.add_api_route("/v1/chat/completions", proxy.chat, methods=["POST"], response_model=None)
    router.add_api_route("/v1/completions", proxy.completion, methods=["POST"], response_model=None)
    router.add_api_route("/v1/{path:path}", proxy.other, methods=_METHODS, response_model=None, include_in_schema=False)
    return router


class _Proxy:
    """The endpoints and what they share: connections to the upstream, threads for shortening, dropped text."""

    def __init__(self, compressor: SpecPC, base: httpx.URL, settings: ProxySettings):
        self._compressor, self._base, self._settings = compressor, base, settings
        kept = settings.dropped_bytes
        self._dropped = DroppedStore(kept, settings.dropped_seconds) if kept else None
        self._client: httpx.AsyncClient | None = None
        self._pool: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Close connections and threads at the end; both are made at first use."""
        try:
            yield
        finally:
            client, self._client, pool, self._pool = self._client, None, self._pool, None
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            if client is not None:
                await client.aclose()

    async def chat(self, request: Request) -> Response:
        """A chat completion of the upstream, from a request with shortened context."""
        return self._completions(request, "chat")

    async def completion(self, request: Request) -> Response:
        """A completion of the upstream, from a prompt with shortened context."""
        return self._completions(request, "completion")

    async def other(self, request: Request) -> Response:
        """Anything else of the upstream, as it is."""
        body, url = Body(request), self._target(request)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers

        async def prepare() -> Outgoing:
            if not has_body:
                await body.whole()  # which waits for the end of nothing
            return Outgoing(self._outgoing(request, url, body.stream() if has_body else None))

        return Relay(self._connections(), body, prepare)

    async def dropped(self, key: str) -> Response:
        """Text that was left out of a request, by an id of header x-draftapprox-dropped."""
        pieces = None if self._dropped is None else self._dropped.get(key)
        if pieces is None:
            raise ServiceError(404, f"there is no dropped text {key!r}, or no longer: send the request again")
        return JSONResponse(dropped_content(key, pieces))

    def _completions(self, request: Request, kind: Kind) -> Response:
        body, url, wish = Body(request), self._target(request), Wish.of(request.headers)

        async def prepare() -> Outgoing:
            content = await body.whole()
            if wish.off or request.headers.get("content-encoding", "identity") != "identity":
                outcome = Outcome("off" if wish.off else "untouched", Shortened(content))
            else:
                outcome = await self._shorten(content, kind, wish)
            report = outcome.content() if self._settings.report_in_body else None
            outgoing = self._outgoing(request, url, outcome.shortened.body, plain=report is not None)
            return Outgoing(outgoing, outcome.headers(), report)

        return Relay(self._connections(), body, prepare)

    async def _shorten(self, body: bytes, kind: Kind, wish: Wish) -> Outcome:
        """The request with shortened context; as it came, if that fails or takes too long."""
        settings, started = self._settings, time.perf_counter()
        options: dict[str, Any] = {"max_tokens": settings.max_tokens, "keep_ratio": settings.keep_ratio}
        options["trigger_tokens"] = settings.trigger_tokens
        if wish.max_tokens is not None:
            options = {"max_tokens": wish.max_tokens}
        if self._dropped is not None:
            options |= {"keep_dropped": self._dropped.put, "marker": settings.marker}

        def work() -> Shortened:
            return shorten(self._compressor, body, kind, unmarked=settings.unmarked, **options)

        waiting = asyncio.get_running_loop().run_in_executor(self._threads(), work)
        try:
            shortened = await asyncio.wait_for(waiting, settings.time_limit)
        except TimeoutError:
            logger.warning("A request goes on unchanged: shortening took longer than %g s", settings.time_limit)
            return Outcome("failed", Shortened(body), time.perf_counter() - started, "timeout")
        except Exception as error:  # whatever it is, the request can be answered without
            logger.warning("A request goes on unchanged: shortening failed: %s", error, exc_info=True)
            return Outcome("failed", Shortened(body), time.perf_counter() - started, "error")
        outcome = Outcome("shortened" if shortened.changed else "untouched", shortened, time.perf_counter() - started)
        if shortened.changed:
            counts = (shortened.tokens_before, shortened.tokens_after, outcome.seconds)
            logger.info("Shortened %d tokens of context to %d in %.2f s", *counts)
        return outcome

    def _target(self, request: Request) -> httpx.URL:
        """The upstream's address of a path.

        Raises:
            ServiceError: the path would leave the upstream's base.
        """
        if {".", ".."} & set(request.url.path.split("/")) or {".", ".."} & set(request.scope["path"].split("/")):
            raise ServiceError(404, "a path must not contain the segments . or ..")
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        rest = raw.partition(b"?")[0].partition(b"/v1/")[2].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        return httpx.URL(f"{self._base}/{rest}{'?' if query else ''}{query}")

    def _outgoing(self, request: Request, url: httpx.URL, content: Any, *, plain: bool = False) -> httpx.Request:
        """The request to send; `plain`: the answer must not come compressed, as it will be read."""
        headers = [
            (name, value)
            for name, value in end_to_end(request.headers.raw)
            if not name.startswith(OWN_HEADERS) and not (plain and name == b"accept-encoding")
        ]
        if self._settings.upstream_key is not None:
            headers = [pair for pair in headers if pair[0] != b"authorization"]
            if self._settings.upstream_key:
                headers.append((b"authorization", b"Bearer " + self._settings.upstream_key.encode()))
        if content is not None and not isinstance(content, bytes) and "content-length" in request.headers:
            headers.append((b"content-length", request.headers["content-length"].encode()))
        # Made without the client, which would add headers of its own; only its timeouts are needed.
        timeouts = {"timeout": self._connections().timeout.as_dict()}
        return httpx.Request(request.method, url, headers=headers, content=content, extensions=timeouts)

    def _connections(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = new_client(self._settings.connect_seconds, self._settings.read_seconds)
        return self._client

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._settings.workers, "draftapprox-proxy")
        return self._pool
