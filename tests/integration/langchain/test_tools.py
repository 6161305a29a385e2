"""Tool calls that a scripted model writes, as LangChain's users see them."""

import copy
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from draftapprox_integrations import LoadedModel, load_model
from draftapprox_integrations.langchain import ChatSpecKV
from tests.helpers.scripted import saying

TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}
CALL = '<tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call>'


async def every_way(runnable: Any, tiny: LoadedModel, text: str) -> list[Any]:
    """Messages of the four ways to call it, streams added up."""

    def options() -> Any:
        return saying(tiny.tokenizer, text)

    streamed = AIMessageChunk("")
    for chunk in runnable.stream("Hi", **options()):
        streamed += chunk
    astreamed = AIMessageChunk("")
    async for chunk in runnable.astream("Hi", **options()):
        astreamed += chunk
    return [runnable.invoke("Hi", **options()), await runnable.ainvoke("Hi", **options()), streamed, astreamed]


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (f"Let me look. {CALL} Back soon.", "Let me look.  Back soon.", 1),
        (f"<think>Use <tool_call>?</think>\n{CALL}", "<think>Use <tool_call>?</think>", 1),
        (f"{CALL}\n{CALL}\nDone.\n", "Done.", 2),
        (CALL.replace('"a"', '"</tool_call>\n"'), "", 1),
        ("a <tool_calm> b\n", "a <tool_calm> b\n", 0),
        ("[1] says so.", "[1] says so.", 0),
    ],
)
async def test_a_stream_shows_the_same_as_invoke(tiny: LoadedModel, text: str, shown: str, calls: int) -> None:
    chat = ChatSpecKV(tiny, method="full").bind_tools([TOOL])
    for message in await every_way(chat, tiny, text):
        assert message.content == shown
        assert len(message.tool_calls) == calls
        assert not message.invalid_tool_calls


async def test_a_prompt_that_ends_inside_a_thought(tiny: LoadedModel) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    thinking = load_model((tiny.model, tokenizer))
    chat = ChatSpecKV(thinking, method="full").bind_tools([TOOL])
    for message in await every_way(chat, thinking, f"Use {CALL}?\n</think>\n{CALL}"):
        assert message.content == f"Use {CALL}?\n</think>"
        assert len(message.tool_calls) == 1
