"""Tool calls that a scripted model writes, over HTTP: the same as the chat model's of this process."""

import json
from typing import Any

import pytest
from openai import OpenAI

from draftapprox_integrations import LoadedModel, SpecKV
from draftapprox_integrations.config import SpecPCConfig
from draftapprox_integrations.engine.streams import AsyncStream
from draftapprox_integrations.langchain import ChatSpecKV
from tests.helpers.openai_service import NAME, serving_completions
from tests.helpers.scripted import Scripted, saying

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}
CALL = '<tool_call>\n{"name": "search", "arguments": {"q": "Ä🌉"}}\n</tool_call>'
HELLO: Any = [{"role": "user", "content": "Hi"}]


class Saying(SpecKV):
    """An engine whose every answer is the same."""

    text = ""

    async def asubmit(self, prompts: Any, **options: Any) -> list[AsyncStream]:
        script = Scripted(self.target.require_tokenizer(), self.text)
        return await super().asubmit(prompts, **options | {"logits_processor": [script]})


@pytest.fixture(scope="module")
def kv(tiny: LoadedModel) -> Saying:
    return Saying(tiny, "self", SpecPCConfig(max_capacity_prompt=4096))


@pytest.fixture(scope="module")
def client(kv: Saying) -> Any:
    with serving_completions(kv) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    ("text", "parallel"),
    [
        (CALL, True),
        (f"Let me look. {CALL} Back soon.", False),
        (f"<think>Use <tool_call>?</think>\n{CALL}", None),
        (f"{CALL}\n{CALL.replace('Ä', 'b')}\nDone.\n", True),
        (f"{CALL}\n{CALL.replace('Ä', 'b')}\nDone.\n", False),
        ("a <tool_calm> b\n", True),
    ],
)
def test_calls_equal_those_of_the_chat_model(
    client: OpenAI, kv: Saying, tiny: LoadedModel, monkeypatch: Any, text: str, parallel: bool | None
) -> None:
    monkeypatch.setattr(Saying, "text", text)
    chat = ChatSpecKV(tiny, method="full").bind_tools([TOOL], parallel_tool_calls=parallel)
    wanted = chat.invoke("Hi", **saying(tiny.tokenizer, text))
    settings: Any = {"model": NAME, "messages": HELLO, "tools": [TOOL], "parallel_tool_calls": parallel}
    answer = client.chat.completions.create(**settings)
    (choice,) = answer.choices
    assert (choice.message.content or "") == wanted.content
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
    assert calls == [(call["name"], call["args"]) for call in wanted.tool_calls]
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    assert answer.usage.prompt_tokens == wanted.usage_metadata["input_tokens"]

    content = ""
    streamed: list[Any] = []
    reasons: list[Any] = []
    for chunk in client.chat.completions.create(stream=True, **settings):
        (part,) = chunk.choices
        content += part.delta.content or ""
        for call in part.delta.tool_calls or []:
            assert call.index == len(streamed)
            assert call.id.startswith("call_")
            streamed.append((call.function.name, json.loads(call.function.arguments)))
        reasons.append(part.finish_reason)
    assert (content, streamed, reasons[-1]) == (wanted.content, calls, choice.finish_reason)


def test_the_client_adds_the_deltas_up(client: OpenAI, monkeypatch: Any) -> None:
    monkeypatch.setattr(Saying, "text", CALL)
    with client.chat.completions.stream(model=NAME, messages=HELLO, tools=[TOOL]) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("search", '{"q": "Ä🌉"}')


def test_a_call_that_is_none_is_text(client: OpenAI, monkeypatch: Any) -> None:
    monkeypatch.setattr(Saying, "text", 'Wait. <tool_call>{"name": "fly", "arguments": {}}</tool_call>')
    settings: Any = {"model": NAME, "messages": HELLO, "tools": [TOOL]}
    answer = client.chat.completions.create(**settings).choices[0]
    assert answer.message.content == 'Wait.\n{"name": "fly", "arguments": {}}'
    assert (answer.message.tool_calls, answer.finish_reason) == (None, "stop")
    chunks = client.chat.completions.create(stream=True, **settings)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.message.content


def test_half_a_surrogate_pair_in_a_call(client: OpenAI, monkeypatch: Any) -> None:
    monkeypatch.setattr(Saying, "text", CALL.replace("Ä🌉", "\\ud83c"))
    for stream in (False, True):
        settings: Any = {"model": NAME, "messages": HELLO, "tools": [TOOL], "stream": stream}
        answer: Any = client.chat.completions.create(**settings)
        if stream:
            (call,) = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or []]
        else:
            (call,) = answer.choices[0].message.tool_calls
        assert call.function.arguments == '{"q": "\\ud83c"}'


def test_a_forced_call_that_is_cut_off(tiny: LoadedModel) -> None:
    kv = SpecKV(tiny, "self", SpecPCConfig(max_capacity_prompt=4096))
    with serving_completions(kv) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for choice in ("required", {"type": "function", "function": {"name": "search"}}):
            settings: Any = {"model": NAME, "messages": HELLO, "tools": [TOOL], "tool_choice": choice, "max_tokens": 40}
            answer = client.chat.completions.create(n=2, temperature=1.0, seed=1, **settings)
            for made in answer.choices:  # a constraint of its own for each
                assert made.message.content.startswith('{"name":"search","arguments":{"q":"')
                assert made.finish_reason == "length"


def test_calls_and_results_in_the_conversation(client: OpenAI, kv: Saying, tiny: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(Saying, "text", "Red.")
    function = {"name": "search", "arguments": '{"q": "bridge"}'}
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which colour"}, {"type": "text", "text": "has it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is red."},
    ]
    for tools in ([TOOL], []):
        wanted = ChatSpecKV(tiny, method="full").invoke(messages, tools=tools, max_tokens=1)
        answer = client.chat.completions.create(model=NAME, messages=messages, tools=tools)
        assert answer.choices[0].message.content == "Red."
        assert answer.usage.prompt_tokens == wanted.usage_metadata["input_tokens"]
