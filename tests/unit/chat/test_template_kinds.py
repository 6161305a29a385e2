"""Templates lose nothing: kinds of templates as popular models ship them, written from their documented behaviour."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations.chat.template import Message, render_chat
from draftapprox_integrations.chat.tools import ToolCall
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import CHAT_TEMPLATE


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Iterator[Any]:
    before = tiny_tokenizer.chat_template
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = before


PHI3 = (
    "{% for m in messages %}{% if m['role']=='user' %}<|user|>{{ m['content'] }}<|assistant|>"
    "{% elif m['role']=='assistant' %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
FIRST_ONLY = (
    "{% if messages[0]['role']=='system' %}<dev>{{ messages[0]['content'] }}</dev>{% endif %}{% for m in messages %}"
    "{% if m['role']=='user' %}<u>{{ m['content'] }}</u>{% elif m['role']=='assistant' %}<a>{{ m['content'] }}</a>"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{% if c.id|length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}{{ c.function | tojson }}{{ c.id }}"
    "{% endfor %}{% elif m.role=='tool' %}"
    "{% if m.tool_call_id|length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}"
    "[R]{{ m.content }}{{ m.tool_call_id }}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c['function']['name'] + ' ' + c['function']['arguments'] }}{% endfor %}{% else %}"
    "<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if 'tool_calls' in m %}"
    "{% if m.tool_calls|length != 1 %}{{ raise_exception('single tool-calls') }}{% endif %}"
    "{{ m.tool_calls[0].function | tojson }}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
PYTHON = DEEPSEEK.replace("' ' + c['function']['arguments']", "' ' ~ c['function']['arguments']")
SEARCH = {"type": "function", "function": {"name": "search", "description": "Find.", "parameters": {}}}


def calls(number: int) -> list[Message]:
    made = [ToolCall("search", {"q": f"query{i}"}) for i in range(number)]
    results = [Message("tool", f"RESULT{i}", tool_call_id=call.id) for i, call in enumerate(made)]
    return [Message("system", "RULE"), Message("user", "find"), Message("assistant", "LOOK", made), *results[::-1]]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PHI3, FIRST_ONLY, MISTRAL, DEEPSEEK, LLAMA3, PYTHON])
@pytest.mark.parametrize("number", [1, 2])
def test_templates_lose_nothing_of_tool_calls(tokenizer: Any, template: str, number: int) -> None:
    tokenizer.chat_template = template
    shown = render_chat(tokenizer, calls(number), [SEARCH])
    for i in range(number):
        assert f"RESULT{i}" in shown
        assert json.dumps({"q": f"query{i}"}) in shown
    for part in ("RULE", "find", "LOOK", "search"):
        assert part in shown


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PHI3, FIRST_ONLY, MISTRAL, DEEPSEEK, LLAMA3])
def test_templates_lose_no_system_message(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    roles = ["system", "user", "assistant", "system", "user"]
    shown = render_chat(tokenizer, [Message(role, f"TEXT{i}") for i, role in enumerate(roles)])
    assert all(f"TEXT{i}" in shown for i in range(5))


GEMMA = (
    "{% if messages[0]['role']=='system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role']=='user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
)
KINDS = {
    "plain": CHAT_TEMPLATE, "phi3": PHI3, "first only": FIRST_ONLY, "mistral": MISTRAL, "deepseek": DEEPSEEK,
    "llama3": LLAMA3, "python": PYTHON, "gemma": GEMMA,
}  # fmt: skip
TURNS = ["system", "user", "assistant", "one call", "two calls", "call without text"]


def conversation(kinds: list[str]) -> tuple[list[Message], list[str]]:
    """Messages for some turns, and every text that is in them."""
    messages: list[Message] = []
    texts: list[str] = []

    def text() -> str:
        texts.append(f"TEXT{len(texts)}X")
        return texts[-1]

    for kind in kinds:
        if "call" not in kind:
            messages.append(Message(kind, text()))
            continue
        calls = [ToolCall("search", {"q": text()}) for _ in range(1 + (kind == "two calls"))]
        messages.append(Message("assistant", "" if "without" in kind else text(), calls))
        messages += [Message("tool", text(), tool_call_id=call.id) for call in reversed(calls)]
    return messages, texts


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.sampled_from(TURNS), max_size=6))
def test_any_conversation_is_whole_or_refused(tiny_tokenizer: Any, kind: str, kinds: list[str]) -> None:
    messages, texts = conversation([*kinds, "user"])
    tiny_tokenizer.chat_template = KINDS[kind]
    shown = refused = ""
    try:
        shown = render_chat(tiny_tokenizer, messages, [SEARCH] if any("call" in one for one in kinds) else [])
    except InvalidInputError as error:
        refused = str(error)
    finally:
        tiny_tokenizer.chat_template = CHAT_TEMPLATE
    if refused:
        assert kind == "gemma"  # a conversation that the assistant begins
        assert "refuses these messages" in refused
    else:
        assert [text for text in texts if text not in shown] == []
