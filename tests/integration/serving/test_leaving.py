"""A client that leaves ends its generation, and nobody else's; what goes wrong in a stream is its last event."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import APIError, InternalServerError, OpenAI
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, load_model
from draftapprox_integrations.models.attention import attention_view
from tests.conftest import tiny_llama
from tests.helpers.openai_service import NAME, serving_completions
from tests.helpers.serving import TIGHT, Gate, wait_until_idle

MANY = 30_000  # tokens: more than are written before any of these tests ends
HELLO = [{"role": "user", "content": "Tell me a long story."}]


@pytest.fixture(scope="module")
def writer(tiny_tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """A model that never ends by itself."""
    target = tiny_llama(eos_token_id=None, max_position_embeddings=60_000)
    target.generation_config.eos_token_id = None
    return load_model((target, tiny_tokenizer))


@pytest.fixture
def kv(writer: LoadedModel) -> Iterator[SpecKV]:
    engine = SpecKV(writer, "self", TIGHT, max_batch_size=2)
    yield engine
    engine.close()


def ask(url: str, **fields: Any) -> socket.socket:
    """Send a chat request on a connection of its own and do not wait for the answer."""
    body = json.dumps({"model": NAME, "messages": HELLO, "max_tokens": MANY, **fields}).encode()
    host, port = url.split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


class Steps:
    """Counts the steps of the running batch."""

    def __init__(self, model: LoadedModel) -> None:
        self.count = 0
        self._handle = attention_view(model.model).register_forward_pre_hook(self._step)

    def _step(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_ends_its_generation(kv: SpecKV, stream: bool, n: int) -> None:
    with serving_completions(kv) as url, Steps(kv.target) as steps:
        connection = ask(url, stream=stream, n=n)
        wait_until(lambda: steps.count > 20)
        assert not kv.is_idle
        connection.close()
        wait_until_idle(kv)
        assert steps.count < MANY


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token(kv: SpecKV, stream: bool) -> None:
    with serving_completions(kv) as url, Gate(kv.target, 0) as gate, Steps(kv.target) as steps:
        connection = ask(url, stream=stream)
        wait_until(lambda: gate.passes > 0)
        connection.close()
        # The server handles its connections in order of their events, so it has seen the end before this request's.
        assert httpx.get(f"{url}/models").status_code == 200
        gate.open()
        wait_until_idle(kv)
        assert steps.count < MANY


def test_a_client_that_leaves_in_the_middle_of_its_request(kv: SpecKV, capfd: pytest.CaptureFixture[str]) -> None:
    with serving_completions(kv) as url:
        host, port = url.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{"model": ')
        assert httpx.get(f"{url}/models").status_code == 200
    assert kv.is_idle
    assert "Traceback" not in capfd.readouterr().err


def test_others_go_on(kv: SpecKV) -> None:
    with serving_completions(kv) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stays = client.completions.create(model=NAME, prompt="Once", max_tokens=MANY, stream=True)
        next(stays)
        connections = [ask(url), ask(url, stream=True), ask(url, n=2)]  # two rows: most of them wait
        next(stays)
        for connection in connections:
            connection.close()
        assert [next(stays).choices[0].finish_reason for _ in range(50)] == [None] * 50
        stays.close()
        wait_until_idle(kv)


def test_an_engine_that_is_closed_in_mid_stream(writer: LoadedModel) -> None:
    kv = SpecKV(writer, "self", TIGHT)
    with serving_completions(kv) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=MANY, stream=True)
        next(stream)
        next(stream)
        kv.close()
        with pytest.raises(APIError, match="the engine was closed before this answer was finished"):
            list(stream)
        with pytest.raises(InternalServerError, match="the engine was closed") as refused:
            client.chat.completions.create(model=NAME, messages=HELLO)
        assert refused.value.status_code == 503


def test_an_error_event_ends_the_stream_without_done(kv: SpecKV) -> None:
    with serving_completions(kv, timeout=0.2) as url:
        body = {"model": NAME, "prompt": "Once", "max_tokens": MANY}
        whole = httpx.post(f"{url}/completions", json=body)
        assert whole.status_code == 504
        assert "took longer than 0.2 s" in whole.json()["error"]["message"]
        lines = httpx.post(f"{url}/completions", json=body | {"stream": True}).text.split("\n\n")
        last = json.loads(lines[-2].removeprefix("data: "))
        assert last["error"] == whole.json()["error"]
        wait_until_idle(kv)
