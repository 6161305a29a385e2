"""The service with all of its faces: an engine behind OpenAI's endpoints, and a proxy in front of that service."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecPC
from draftapprox_integrations.cli.serving_routes import KEY_VARIABLE, Served
from draftapprox_integrations.config import SpecKVPCConfig, SpecPCConfig
from draftapprox_integrations.engine.registry import FULL
from draftapprox_integrations.errors import InvalidInputError
from tests.helpers.service import Running, running, wait_until
from tests.integration.serving.conftest import QUERY, TEXTS

TOKEN = "s3cret"
CONTEXT = " ".join(TEXTS[:2])
PROMPT = f"Context:\n{CONTEXT}\n\nQuestion: {QUERY}"


@pytest.fixture(scope="module")
def compressor(embedded_model: LoadedModel) -> SpecPC:
    return SpecPC(embedded_model)


@pytest.fixture(scope="module")
def target(compressor: SpecPC) -> Iterator[Running]:
    with running(
        compressor, routers=Served(model="default", kv=64).routers(compressor, has_token=True), token=TOKEN
    ) as it:
        yield it


@pytest.fixture
def proxy(compressor: SpecPC, target: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, TOKEN)
    served = Served(upstream=f"{target.url}/v1", context_tokens=15, trigger_tokens=20)
    with running(compressor, routers=served.routers(compressor, has_token=True), token="another") as it:
        yield it


def client_of(service: Running, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


def test_one_port_answers_compresses_and_reranks(target: Running, compressor: SpecPC) -> None:
    client = client_of(target, TOKEN)
    messages = [{"role": "user", "content": PROMPT}]
    answer = client.chat.completions.create(model="default", messages=messages, max_tokens=8)
    chunks = client.chat.completions.create(model="default", messages=messages, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    tokenizer = compressor.draft.require_tokenizer()
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    engine = SpecKV(compressor.draft, compressor.draft, SpecKVConfig(max_capacity_prompt=64))
    assert answer.choices[0].message.content == engine.generate(ids, max_new_tokens=8)[0].text
    headers = {"Authorization": f"Bearer {TOKEN}"}
    kept = httpx.post(
        f"{target.url}/v1/compress", json={"passages": TEXTS, "query": QUERY, "max_tokens": 12}, headers=headers
    )
    assert kept.json()["passages"][1]["text"] == "The bridge was opened in 1932."
    metrics = httpx.get(f"{target.url}/metrics", headers=headers).text
    assert 'path="/v1/chat/completions"' in metrics
    assert "/v1/rerank" in httpx.get(f"{target.url}/openapi.json", headers=headers).json()["paths"]


def test_without_the_token_nothing_is_answered(target: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        client_of(target, "wrong").models.list()


def test_a_client_that_leaves_ends_its_answer(target: Running) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 2000}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.stream(
        "POST", f"{target.url}/v1/chat/completions", json=body | {"stream": True}, headers=headers
    ) as answer:
        next(answer.iter_lines())
    wait_until(lambda: target.service.in_flight == 0)


def test_a_proxy_in_front_of_it(proxy: Running, target: Running) -> None:
    client = client_of(proxy, "another")
    create = client.chat.completions.with_raw_response.create
    response = create(model="default", messages=[{"role": "user", "content": PROMPT}], max_tokens=8)
    assert response.headers["x-draftapprox-status"] == "shortened"
    short = PROMPT.replace(CONTEXT, "The bridge was opened in 1932.")
    direct = client_of(target, TOKEN).chat.completions.create(
        model="default", messages=[{"role": "user", "content": short}], max_tokens=8
    )
    answer = response.parse()
    assert answer.choices[0].message.content == direct.choices[0].message.content
    assert answer.usage is not None
    assert direct.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens
    assert [model.id for model in client.models.list().data] == ["default"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        create(model="other", messages=[{"role": "user", "content": "Hi"}])


def test_the_services_token_is_not_sent_on(compressor: SpecPC, target: Running) -> None:
    served = Served(upstream=f"{target.url}/v1")
    with (
        running(compressor, routers=served.routers(compressor, has_token=True), token=TOKEN) as it,
        pytest.raises(openai.AuthenticationError, match="Authorization: Bearer TOKEN"),  # the target's own answer
    ):
        client_of(it, TOKEN).models.list()


def test_the_numbers_say_which_method_it_is() -> None:
    served = Served(model="default")
    assert served.config() == FULL
    assert replace(served, kv=64).config() == SpecKVConfig(max_capacity_prompt=64)
    assert replace(served, prompt_tokens=99).config() == SpecPCConfig(max_capacity_prompt=99)
    assert replace(served, kv=64, prompt_tokens=99).config() == SpecKVPCConfig(
        specpc_config=SpecPCConfig(max_capacity_prompt=99), speckv_config=SpecKVConfig(max_capacity_prompt=64)
    )
    with pytest.raises(InvalidInputError, match="not both"):
        Served(model="default", upstream="http://localhost")
