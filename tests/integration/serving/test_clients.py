"""Clients of OpenAI's interface, unmodified. The model is tiny: nonsense, unless a schema leaves no choice."""

import json
from typing import Any, Literal

import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as LangChainOpenAI
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from draftapprox_integrations import SpecKV
from draftapprox_integrations.langchain import ChatSpecKV
from tests.helpers.openai_service import NAME

QUESTION = "What is the capital of France?"


class City(BaseModel):
    capital: Literal["Paris", "Rome"]
    is_large: bool


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return city


@pytest.fixture(scope="module")
def wanted(kv: SpecKV) -> str:
    return str(ChatSpecKV(kv, max_tokens=10).invoke(QUESTION).content)


def test_openai(url: str, wanted: str) -> None:
    message: Any = [{"role": "user", "content": QUESTION}]
    with OpenAI(base_url=url, api_key="none") as client:
        asked: Any = {"model": NAME, "messages": message}
        assert client.chat.completions.create(**asked, max_tokens=10).choices[0].message.content == wanted
        parsed = client.chat.completions.parse(**asked, response_format=City, max_tokens=200).choices[0].message
        assert parsed.parsed == City.model_validate_json(parsed.content)
        with client.chat.completions.stream(**asked, response_format=City, max_tokens=200) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == parsed.parsed
        json_mode: Any = {"type": "json_object", "schema": City.model_json_schema()}
        answer = client.chat.completions.create(**asked, response_format=json_mode, max_tokens=200)
        City.model_validate_json(answer.choices[0].message.content)


async def test_openai_async(url: str, wanted: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        asked: Any = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 10}
        assert (await client.chat.completions.create(**asked)).choices[0].message.content == wanted
        chunks: Any = await client.chat.completions.create(**asked, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == wanted


async def test_langchain(url: str, kv: SpecKV, wanted: str) -> None:
    settings: Any = {"model": NAME, "base_url": url, "api_key": "none", "max_tokens": 200}
    chat = ChatOpenAI(**settings | {"max_tokens": 10})
    ours = ChatSpecKV(kv, max_tokens=10).invoke(QUESTION)
    answer = chat.invoke(QUESTION)
    assert answer.content == wanted
    assert answer.usage_metadata["input_tokens"] == ours.usage_metadata["input_tokens"]
    assert answer.response_metadata["token_usage"]["kept_kv"] == ours.response_metadata["kept_kv"]
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == wanted
    assert "".join([str(chunk.content) async for chunk in chat.astream(QUESTION)]) == wanted
    chat = ChatOpenAI(**settings)
    (call,) = chat.bind_tools([weather], tool_choice="weather").invoke("Is it warm in Rome?").tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Paris", "Rome")
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(City, method=method).invoke(QUESTION), City)
    llm = LangChainOpenAI(model=NAME, base_url=url, api_key="none", max_tokens=6)
    texts = [kv.generate(prompt, max_new_tokens=6, temperature=0.7, seed=1)[0].text for prompt in ("One", "The sea")]
    generated = llm.generate(["One", "The sea"], seed=1)
    assert [generations[0].text for generations in generated.generations] == texts


async def test_llama_index(url: str, kv: SpecKV, wanted: str) -> None:
    settings: Any = {"model": NAME, "api_base": url, "api_key": "none", "temperature": 0.0, "max_tokens": 10}
    llm = OpenAILike(**settings, is_chat_model=True, is_function_calling_model=True, context_window=8192)
    message = [ChatMessage(role="user", content=QUESTION)]
    answer = llm.chat(message)
    assert answer.message.content == wanted
    assert answer.raw.usage.kept_prompt_tokens == answer.raw.usage.prompt_tokens
    assert "".join(part.delta or "" for part in llm.stream_chat(message)) == wanted
    assert (await llm.achat(message)).message.content == wanted
    assert "".join([part.delta or "" async for part in await llm.astream_chat(message)]) == wanted
    plain = OpenAILike(**settings, is_chat_model=False)
    assert plain.complete("The sea is").text == kv.generate("The sea is", max_new_tokens=10)[0].text
    assert (
        "".join(part.delta or "" for part in plain.stream_complete("The sea is")) == plain.complete("The sea is").text
    )

    def report(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        return city

    llm.max_tokens = 200
    response = llm.chat_with_tools([FunctionTool.from_defaults(report)], "Is it warm in Rome?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "report"
    assert json.loads(json.dumps(call.tool_kwargs))["city"] in ("Paris", "Rome")
    assert isinstance(llm.as_structured_llm(City).complete(QUESTION).raw, City)
