"""Conversations of every shape reach the model through templates that differ in what they accept."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations.chat.template import Message, encode_chat, render_chat, renders_tools
from draftapprox_integrations.chat.tools import ToolCall
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import CHAT_TEMPLATE

# As Gemma's and Mistral's: no system role, user and assistant in turns.
STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As Qwen2.5's: shows tools, writes calls.
TOOLS = (
    "{% if tools %}{% for t in tools %}<tool>{{ t['function']['name'] }}</tool>{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}"
    "</call>{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": {}}}


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[Any]:
    before = tiny_tokenizer.chat_template
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = before


def test_neighbours_of_one_role_are_merged(tokenizer: Any) -> None:
    messages = [
        Message("system", "one"), Message("system", "two"), Message("user", "a"), Message("user", "b"),
        Message("assistant", "c"), Message("assistant", "d"), Message("user", "e"),
    ]  # fmt: skip
    assert render_chat(tokenizer, messages) == (
        "<|system|>one\n\ntwo<|end|><|user|>a\n\nb<|end|><|assistant|>c\n\nd<|end|><|user|>e<|end|><|assistant|>"
    )


def test_a_template_that_refuses_system_messages_gets_them_in_the_users(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    messages = [
        Message("system", "be brief"),
        Message("user", "hello"),
        Message("assistant", "hi"),
        Message("user", "?"),
    ]
    assert render_chat(tokenizer, messages) == "[user]be brief\n\nhello[assistant]hi[user]?[assistant]"
    with pytest.raises(InvalidInputError, match="refuses these messages: Roles must alternate"):
        render_chat(tokenizer, [Message("assistant", "hi"), Message("user", "x")])


def test_the_assistants_last_message_is_gone_on_with(tokenizer: Any) -> None:
    messages = [Message("user", "Count."), Message("assistant", "One, two,")]
    assert render_chat(tokenizer, messages) == "<|user|>Count.<|end|><|assistant|>One, two,"


def test_tools_go_through_a_template_that_knows_them(tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLS
    assert renders_tools(tokenizer)
    messages = [
        Message("user", "Rain?"),
        Message("assistant", "", [ToolCall("weather", {"town": "Göteborg"}, "1")]),
        Message("tool", "no", name="weather", tool_call_id="1"),
    ]
    shown = render_chat(tokenizer, messages, [WEATHER])
    assert shown == (
        '<tool>weather</tool>[user]Rain?[assistant]<call>weather{"town": "Göteborg"}</call>[tool]no[assistant]'
    )


def test_tools_are_described_to_a_template_that_does_not(tokenizer: Any) -> None:
    assert not renders_tools(tokenizer)
    messages = [
        Message("system", "Be brief."),
        Message("user", "Rain?"),
        Message("assistant", "Let me see.", [ToolCall("weather", {"town": "Göteborg"}, "1")]),
        Message("tool", "no", name="weather", tool_call_id="1"),
    ]
    shown = render_chat(tokenizer, messages, [WEATHER])
    system, user, assistant, result, _ = shown.split("<|end|>")
    assert system.startswith("<|system|>Be brief.\n\nYou may call")
    assert json.dumps(WEATHER["function"]) in system
    assert user == "<|user|>Rain?"
    assert '<tool_call>\n{"name": "weather", "arguments": {"town": "Göteborg"}}\n</tool_call>' in assistant
    assert assistant.startswith("<|assistant|>Let me see.")
    assert result.startswith("<|user|><tool_response>")


def test_without_template_or_messages(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="no messages"):
        render_chat(tokenizer, [])
    tokenizer.chat_template = None
    with pytest.raises(InvalidInputError, match="has no chat template.*SpecKVLLM"):
        render_chat(tokenizer, [Message("user", "x")])


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ROLES, st.text("ab é\U0001f600", max_size=8)), min_size=1, max_size=6))
def test_no_text_is_lost(tiny_tokenizer: PreTrainedTokenizerFast, turns: Any) -> None:
    messages = [Message(role, text, name="f") for role, text in turns]
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    shown = render_chat(tiny_tokenizer, messages)
    for message in messages:
        assert (
            json.dumps(message.content, ensure_ascii=False)[1:-1] if message.role == "tool" else message.content
        ) in shown


def test_short_messages_and_marks_are_protected_and_long_ones_not(tokenizer: Any) -> None:
    long_text = "The old mill was built in 1821 by the river. " * 40
    messages = [Message("system", "Be brief."), Message("user", long_text), Message("user", "When was it built?")]
    messages = [messages[0], messages[1], Message("assistant", "Yes?"), messages[2]]
    ids, protected = encode_chat(tokenizer, messages, capacity=400)
    kept = tokenizer.decode([token for token, keep in zip(ids, protected, strict=True) if keep])
    dropped = tokenizer.decode([token for token, keep in zip(ids, protected, strict=True) if not keep])
    assert kept.startswith("<|system|>Be brief.")
    assert kept.endswith("<|user|>When was it built?<|end|><|assistant|>")
    assert "Yes?" in kept
    assert dropped.strip() == long_text.strip()
    # a long history does not make it impossible: the newest go first, up to half the capacity
    many = [Message("user" if i % 2 == 0 else "assistant", f"message {i}") for i in range(101)]
    _, protected = encode_chat(tokenizer, many, capacity=200)
    assert 80 < sum(protected) <= 100
    assert all(protected[-60:])
    assert not any(protected[:60])
