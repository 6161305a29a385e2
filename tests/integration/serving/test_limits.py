"""What a service refuses, and how: tokens, sizes, times, queues; for routes of others and streams too."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import EngineClosedError, InvalidInputError
from draftapprox_integrations.serving.errors import ServiceError
from tests.helpers.service import HeldScorer, Running, running, wait_until
from tests.integration.serving.conftest import QUERY, TEXTS

BODY = {"passages": TEXTS, "query": QUERY, "max_tokens": 20}
JSON = {"Content-Type": "application/json"}


def is_error(answer: httpx.Response, status: int, kind: str = "invalid_request_error") -> bool:
    content = answer.json()
    error = content["error"]
    assert content["message"] == error["message"]
    assert answer.headers["x-request-id"]
    return (answer.status_code, error["code"], error["type"]) == (status, str(status), kind)


def test_a_token_opens_all_but_health(tiny: LoadedModel) -> None:
    with running(SpecPC(tiny), token="s3cret") as service, httpx.Client(base_url=service.url) as client:
        for path in ("/v1/info", "/metrics", "/docs", "/openapi.json", "/nope"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
                answer = client.get(path, headers=headers)
                assert is_error(answer, 401, "authentication_error")
                assert answer.headers["www-authenticate"] == "Bearer"
            right = client.get(path, headers={"Authorization": "bearer s3cret"})
            assert right.status_code == (404 if path == "/nope" else 200)
        assert is_error(client.post("/v1/compress", json=BODY), 401, "authentication_error")
        assert client.get("/healthz").text == "ok"
        assert client.get("/readyz").text == "ready"
        odd = client.get("/v1/info", headers={"Authorization": "Bearer s3cr\u00e9t".encode("latin-1")})
        assert is_error(odd, 401, "authentication_error")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"nul", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"query": "\xe9"}', 400),
        (b"[" * 100_000, 400),
        (b'{"passages": ' + b"[" * 900 + b"]" * 900 + b', "query": "q"}', 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": 1e400}', 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": NaN}', 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": true}', 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": "5"}', 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": ' + b"9" * 400 + b"}", 422),
        (b'{"passages": ["a"], "query": "q", "max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"passages": ["a"], "query": "q", "keep_ratio": Infinity}', 422),
        (b'{"passages": ["a"], "query": "q", "keep_ratio": ' + b"9" * 400 + b"}", 422),
        (b'{"passages": ["a"], "query": "q", "retriever_scores": [-Infinity]}', 422),
        (b'{"passages": ["a"], "query": "q", "retriever_scores": [1e999]}', 422),
        (b'{"passages": ["a"], "query": "q", "titles": []}', 422),
        (b'{"passages": ["a"], "query": "q", "protect": [""]}', 422),
        (b'{"passages": ["a"], "query": " "}', 422),
        (b'{"passages": "text", "query": "q"}', 422),
        (b'{"passages": [1], "query": "q"}', 422),
        (b'{"passages": ["a"], "query": "q", "keep": 1}', 422),
        (b'{"passages": ["a"], "query": "q", "\\ud800": 1}', 422),
        (b'{"passages": ["\\ud800"], "query": "\\udfff", "order": "relevance", "protect": ["\\ud801"]}', 200),
        (b'{"passages": ["a"], "query": "q", "query": "r"}', 200),
    ],
)
def test_bodies(body: bytes, status: int, service: Running) -> None:
    answer = httpx.post(service.url + "/v1/compress", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.is_success or is_error(answer, status)


def test_other_content_and_paths(service: Running) -> None:
    with httpx.Client(base_url=service.url) as client:
        form = client.post("/v1/compress", data={"query": "q"})
        assert is_error(form, 422)
        assert "Content-Type: application/json" in form.json()["message"]
        assert is_error(client.get("/nope"), 404)
        assert is_error(client.get("/v1/compress"), 405)
        assert is_error(client.request("GET", "/healthz", content=b"x" * (5 << 20)), 413)
        assert (
            client.post("/v1/compress", json=BODY, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"]
            == "mine-1"
        )
        for odd in ("a b", "x" * 129, '"', "\u00e9"):
            given = client.get("/healthz", headers={"X-Request-ID": odd.encode("latin-1")}).headers["x-request-id"]
            assert len(given) == 32


def test_long_bodies(tiny: LoadedModel) -> None:
    long = json.dumps(BODY | {"passages": ["word " * 1000]}).encode()
    with running(SpecPC(tiny), max_body_bytes=2000) as service, httpx.Client(base_url=service.url) as client:
        whole = client.post("/v1/compress", content=long, headers=JSON)
        pieces = client.post(
            "/v1/compress", content=(long[i : i + 100] for i in range(0, len(long), 100)), headers=JSON
        )
        for answer in (whole, pieces):
            assert is_error(answer, 413)
            assert "more than 2000 bytes" in answer.json()["message"]
        assert client.post("/v1/compress", json=BODY).status_code == 200
        asking = b"POST /v1/compress HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
        assert exchange(service, asking).startswith(b"HTTP/1.1 413")  # before a byte of the body was sent


def test_endless_bodies_are_given_up(tiny: LoadedModel) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 10_000

    with running(SpecPC(tiny), max_body_bytes=2000) as service:
        # The service closes the connection, perhaps while the client still writes.
        with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            assert is_error(httpx.post(service.url + "/v1/compress", content=endless(), headers=JSON), 413)
        wait_until(lambda: service.service.in_flight == 0)


def exchange(service: Running, data: bytes, then: bytes = b"") -> bytes:
    """Send bytes, and further ones after the first answer; read until the service closes the connection."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
            if then and received.endswith(b"ok"):
                connection.sendall(then)
        return received


def test_slow_clients(tiny: LoadedModel) -> None:
    with running(SpecPC(tiny), body_seconds=0.2, header_seconds=0.2, keep_alive_seconds=60) as service:
        slow_body = b"POST /v1/compress HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        assert exchange(service, slow_body).startswith(b"HTTP/1.1 408")
        assert exchange(service, b"") == b""  # a connection without a request
        assert exchange(service, b"POST /v1/compress HTTP/1.1\r\nHost:") == b""
        first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        assert exchange(service, first, b"GET /hea").count(b"HTTP/1.1 200") == 1  # the second request never came whole
        assert httpx.get(service.url + "/healthz").text == "ok"


def test_a_flood_is_answered_429(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer), workers=1, queue=2) as service:
        answers: list[httpx.Response] = []
        ask = lambda: answers.append(httpx.post(service.url + "/v1/compress", json=BODY, timeout=60))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == 5)  # one computes, two wait
        assert (scorer.begun, service.service.workers.waiting) == (1, 2)
        for answer in answers:
            assert is_error(answer, 429, "rate_limit_error")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert is_error(httpx.get(service.url + "/readyz"), 503, "server_error")
        assert httpx.get(service.url + "/healthz").text == "ok"
        assert "draftapprox_queue_depth 2.0" in httpx.get(service.url + "/metrics").text
        scorer.let_go()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        assert httpx.get(service.url + "/readyz").text == "ready"


def test_a_client_that_leaves_frees_its_place(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer), workers=1, queue=1) as service:
        running_one = threading.Thread(target=lambda: httpx.post(service.url + "/v1/compress", json=BODY, timeout=60))
        running_one.start()
        wait_until(lambda: scorer.begun == 1)
        with pytest.raises(httpx.ReadTimeout):  # waits, and leaves
            httpx.post(service.url + "/v1/compress", json=BODY, timeout=0.2)
        wait_until(lambda: service.service.workers.waiting == 0)
        answers: list[int] = []
        ask = lambda: answers.append(httpx.post(service.url + "/v1/compress", json=BODY, timeout=60).status_code)  # noqa: E731
        waiting = threading.Thread(target=ask)
        waiting.start()
        wait_until(lambda: service.service.workers.waiting == 1)
        scorer.let_go()
        waiting.join()
        running_one.join()
        assert answers == [200]
        assert scorer.begun == 2  # what nobody waits for was not computed
        text = httpx.get(service.url + "/metrics").text
        assert 'draftapprox_requests_total{path="/v1/compress",status="499"} 1.0' in text


def test_most_requests_at_a_time(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer), max_requests=1) as service:
        first = threading.Thread(target=lambda: httpx.post(service.url + "/v1/compress", json=BODY, timeout=60))
        first.start()
        wait_until(lambda: scorer.begun == 1)
        answer = httpx.get(service.url + "/v1/info")
        assert is_error(answer, 429, "rate_limit_error")
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(service.url + "/healthz").text == "ok"
        scorer.let_go()
        first.join()


def other_router() -> APIRouter:
    router = APIRouter()

    @router.post("/other/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @router.get("/other/{kind}/error")
    async def error(kind: str) -> None:
        raise {
            "service": ServiceError(418, "a teapot"),
            "package": EngineClosedError("closed"),
            "unknown": RuntimeError("user text"),
        }[kind]

    @router.post("/other/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "one "
            yield "two"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @router.post("/other/broken")
    async def broken() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "one "
            raise InvalidInputError("user text")

        return StreamingResponse(pieces())

    return router


def test_routes_of_others_get_all_of_it(tiny: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="draftapprox_integrations.serving")
    settings: Any = {"token": "s3cret", "max_body_bytes": 2000, "routers": [other_router()]}
    with running(SpecPC(tiny), **settings) as service, httpx.Client(base_url=service.url) as client:
        assert is_error(client.post("/other/stream"), 401, "authentication_error")
        client.headers["Authorization"] = "Bearer s3cret"
        assert client.post("/other/echo", json={"a": 1}).json() == {"a": 1}
        assert is_error(client.post("/other/echo", content=b"[" * 1999, headers=JSON), 400)
        assert is_error(client.post("/other/echo", content=b"[" * 2001, headers=JSON), 413)
        with client.stream("POST", "/other/stream") as answer:
            assert "".join(answer.iter_text()) == "one two"
            assert answer.headers["x-request-id"]
        assert is_error(client.get("/other/service/error"), 418)
        assert is_error(client.get("/other/package/error"), 503, "server_error")
        unknown = client.get("/other/unknown/error")
        assert is_error(unknown, 500, "server_error")
        assert "user text" not in unknown.text
        with pytest.raises(httpx.RemoteProtocolError):  # an error in the middle of a stream breaks the connection
            client.post("/other/broken")
        metrics = client.get("/metrics").text
        assert 'draftapprox_requests_total{path="/other/{kind}/error",status="500"} 1.0' in metrics
        assert 'draftapprox_requests_total{path="/other/stream",status="401"} 1.0' in metrics
        assert 'draftapprox_requests_total{path="/other/stream",status="200"} 1.0' in metrics
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("serving.records")]
    assert any('"RuntimeError at ' in line for line in lines)
    assert not any("user text" in line for line in lines)


def test_draining_holds_for_streams_too(tiny: LoadedModel) -> None:
    with running(SpecPC(tiny), routers=[other_router()]) as service:
        service.service.draining = True
        answer = httpx.post(service.url + "/other/stream")
        assert is_error(answer, 503, "server_error")
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        assert is_error(httpx.get(service.url + "/readyz"), 503, "server_error")
        assert httpx.get(service.url + "/healthz").text == "ok"
