"""Bytes and connections through the proxy: what must not change, who leaves, and upstreams that fail."""

import asyncio
import gzip
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.serving.errors import add_error_handlers
from draftapprox_integrations.serving.proxy import proxy_router
from draftapprox_integrations.serving.proxy_settings import ProxySettings
from draftapprox_integrations.specpc.scoring.bm25 import BM25Scorer
from tests.helpers.upstream import Recorder, running

TEXT = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning. " * 4
BODY = {"messages": [{"role": "user", "content": f"Context:\n{TEXT}\n\nQuestion: When?"}]}
PATIENCE = 60


def wire() -> FastAPI:
    """An upstream that answers with bytes and connections of every kind."""
    app = FastAPI()

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        while b'"silent"' in body and not await request.is_disconnected():
            await asyncio.sleep(0.01)
        if b'"endless"' in body or b'"breaks"' in body:
            return StreamingResponse(events(b'"breaks"' in body), media_type="text/event-stream")
        return JSONResponse({"usage": {}, "length": len(body)}, headers={"x-limit": "7"})

    async def events(breaks: bool) -> AsyncIterator[bytes]:
        for index in range(10_000):
            yield b"data: %d\n\n" % index
            if breaks and index == 3:
                raise ConnectionAbortedError("on purpose")
            await asyncio.sleep(0.01)

    @app.api_route("/v1/echo/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    async def echo(request: Request) -> Response:
        answer = Response(gzip.compress(await request.body(), mtime=0), 418, media_type="application/x-odd")
        answer.raw_headers += [(b"content-encoding", b"gzip"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        return answer

    @app.get("/v1/large")
    async def large(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(4_000):
                request.app.state.sent = getattr(request.app.state, "sent", 0) + 16_384
                yield b"x" * 16_384

        return StreamingResponse(pieces())

    @app.get("/v1/moved")
    async def moved() -> Response:
        return Response(status_code=307, headers={"location": "http://elsewhere.invalid/"})

    return app


@pytest.fixture(scope="module")
def upstream() -> Iterator[Any]:
    recorder = Recorder(wire())
    with running(recorder) as url:
        yield recorder, url


@pytest.fixture
def arrived(upstream: Any) -> Any:
    upstream[0].requests.clear()
    return upstream[0].requests


@pytest.fixture(scope="module")
def compressor(tiny: LoadedModel) -> SpecPC:
    return SpecPC(tiny, scorer=BM25Scorer())


def application(compressor: Any, upstream: Any, **settings: Any) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(proxy_router(compressor, upstream, ProxySettings(**({"time_limit": 60} | settings))))
    return app


@pytest.fixture(scope="module")
def proxy(upstream: Any, compressor: SpecPC) -> Iterator[str]:
    with running(application(compressor, upstream[1], max_tokens=30, trigger_tokens=0)) as url:
        yield url


def raw(url: Any, method: Any, path: Any, **options: Any) -> Any:
    with httpx.Client() as client, client.stream(method, f"{url}{path}", **options) as response:
        return response.status_code, response.headers.multi_items(), b"".join(response.iter_raw())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_other_paths_pass_byte_by_byte(proxy: Any, upstream: Any, arrived: Any, method: Any) -> None:
    path = "/v1/echo/a%2Fb%20c/%C3%BC?q=a%26b&q=+x&empty="
    content = {"content": bytes(range(256)) * 9} if method in ("POST", "PUT", "PATCH") else {}
    headers = {"x-many": "1, 2", "cookie": "a=b", "connection": "x-private", "x-private": "p", "te": "trailers"}
    direct, through = (raw(url, method, path, headers=headers, **content) for url in (upstream[1], proxy))
    assert through[0] == direct[0] == 418
    assert through[2] == direct[2]
    direct_headers, through_headers = (
        sorted((name, "" if name == "date" else value) for name, value in answer[1]) for answer in (direct, through)
    )
    assert through_headers == direct_headers
    first, second = arrived
    assert (second.method, second.path, second.body) == (first.method, first.path, first.body)
    assert second.header("host") == upstream[1].removeprefix("http://")
    assert second.header("cookie") == "a=b"
    assert second.header("x-private") is second.header("te") is None
    left = {"connection", "x-private", "te", "host"}
    assert {p for p in second.headers if p[0] not in left} == {p for p in first.headers if p[0] not in left}


def test_an_upload_of_unknown_length_is_streamed(proxy: Any, arrived: Any) -> None:
    status, _, body = raw(proxy, "POST", "/v1/echo/", content=iter([b"a" * 70_000, b"b" * 70_000]))
    assert (status, gzip.decompress(body)) == (418, arrived[0].body)
    assert len(arrived[0].body) == 140_000


def test_redirects_and_cookies_are_the_clients_business(proxy: Any, arrived: Any) -> None:
    assert raw(proxy, "GET", "/v1/moved")[0] == 307
    raw(proxy, "GET", "/v1/echo/")
    raw(proxy, "GET", "/v1/echo/")  # the first one set cookies
    assert arrived[-1].header("cookie") is None


@pytest.mark.parametrize("path", ["/v1/%2e%2e/admin", "/v1/echo/%2E%2E/%2e%2e/admin", "/v1/./x"])
def test_no_path_leaves_the_base(proxy: Any, arrived: Any, path: Any) -> None:
    host, port = proxy.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:  # clients would tidy the path
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in connection.recv(100)
    assert not arrived


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"messages": [{"role": 1}]}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_malformed_bodies_pass(proxy: Any, arrived: Any, path: Any, body: Any) -> None:
    status, headers, _ = raw(proxy, "POST", path, content=body)
    assert status == 200
    assert arrived[0].body == body
    assert dict(headers)["x-draftapprox-status"] == "untouched"


def test_a_compressed_request_passes(proxy: Any, arrived: Any) -> None:
    body = gzip.compress(str(BODY).encode())
    raw(proxy, "POST", "/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
    assert arrived[0].body == body


@pytest.mark.parametrize("kind", ["endless", "silent"])
def test_a_client_that_leaves_takes_the_upstream_along(proxy: Any, arrived: Any, kind: Any) -> None:
    body = {**BODY, "model": kind}
    with httpx.Client(timeout=None if kind == "endless" else 1.0) as client:
        if kind == "endless":
            with client.stream("POST", f"{proxy}/v1/chat/completions", json=body) as response:
                assert next(response.iter_raw()).startswith(b"data: 0")
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{proxy}/v1/chat/completions", json=body)
    assert arrived[0].left.wait(PATIENCE)


def test_a_slow_reader_slows_the_upstream(proxy: Any, upstream: Any) -> None:
    state = upstream[0].app.state
    with httpx.Client(timeout=PATIENCE) as client, client.stream("GET", f"{proxy}/v1/large") as response:
        chunks = response.iter_raw()
        next(chunks)
        before = -1
        while before != state.sent:  # until nothing moves any more
            before = state.sent
            threading.Event().wait(0.3)
        assert before < 4_000 * 16_384
        assert sum(map(len, chunks)) > 4_000 * 16_384 - 200_000


def test_an_answer_that_breaks_off_does_not_look_whole(proxy: Any) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        raw(proxy, "POST", "/v1/chat/completions", json={**BODY, "model": "breaks"})


def test_an_upstream_that_is_down(compressor: SpecPC) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with running(application(compressor, address, max_tokens=30, trigger_tokens=0)) as url:
            for method, path, options in [("GET", "/v1/models", {}), ("POST", "/v1/chat/completions", {"json": BODY})]:
                response = httpx.request(method, url + path, **options)
                assert response.status_code == 502
                assert "cannot be reached" in response.json()["error"]["message"]
                assert response.json()["error"]["type"] == "server_error"
            assert response.headers["x-draftapprox-status"] == "shortened"


def test_the_upstreams_own_key(upstream: Any, arrived: Any, compressor: SpecPC) -> None:
    with running(application(compressor, upstream[1], upstream_key="secret")) as url:
        for path in ("/v1/echo/", "/v1/chat/completions"):
            raw(url, "POST", path, content=b"{}", headers={"authorization": "Bearer mine"})
    keys = [value for request in arrived for name, value in request.headers if name == "authorization"]
    assert keys == ["Bearer secret"] * 2
    assert "secret" not in repr(ProxySettings(upstream_key="secret"))


def test_an_upstream_that_does_not_answer(upstream: Any, compressor: SpecPC) -> None:
    with running(application(compressor, upstream[1], read_seconds=0.2)) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json={**BODY, "model": "silent"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "504")


class Broken:
    """A scorer that raises, or waits until it is released."""

    def __init__(self, release: threading.Event | None = None):
        self.release = release

    def score(self, query: Any, passages: Any, sentences: Any) -> Any:
        if self.release is None:
            raise RuntimeError("the draft is ill")
        self.release.wait(PATIENCE)
        return BM25Scorer().score(query, passages, sentences)


@pytest.mark.parametrize("reason", ["error", "timeout"])
def test_a_request_goes_on_unchanged_if_shortening_fails(
    upstream: Any, arrived: Any, tiny: LoadedModel, caplog: pytest.LogCaptureFixture, reason: Any
) -> None:
    release = threading.Event()
    broken = SpecPC(tiny, scorer=Broken(release if reason == "timeout" else None))
    limit = 0.2 if reason == "timeout" else 60
    settings = {"max_tokens": 30, "trigger_tokens": 0, "time_limit": limit, "workers": 1, "report_in_body": True}
    with running(application(broken, upstream[1], **settings)) as url, caplog.at_level(logging.WARNING):
        try:
            for _ in range(3):  # two of them wait for the only worker
                response = httpx.post(f"{url}/v1/chat/completions", json=BODY)
                assert response.status_code == 200
                assert response.headers["x-limit"] == "7"
                assert response.headers["x-draftapprox-status"] == "failed"
                assert response.headers["x-draftapprox-reason"] == reason
                assert "x-draftapprox-tokens-after" not in response.headers
                assert response.json()["draftapprox"]["reason"] == reason
        finally:
            release.set()
    assert len({request.body for request in arrived}) == 1
    assert arrived[0].json == BODY
    assert "goes on unchanged" in caplog.text
