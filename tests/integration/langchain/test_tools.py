"""Tool calls that a scripted model writes, as LangChain's users see them."""

import copy
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from draftapprox_integrations import LoadedModel, load_model
from draftapprox_integrations.errors import InvalidInputError
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
OTHER = CALL.replace('"a"', '"b"')


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


@pytest.mark.parametrize(
    "bound",
    [
        {"parallel_tool_calls": False},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ],
)
async def test_parallel_calls_switched_off(tiny: LoadedModel, bound: Any) -> None:
    text = f"Both. {CALL}\n{OTHER}<tool_call>{{bad</tool_call> End."
    chat = ChatSpecKV(tiny, method="full").bind_tools([TOOL], **bound)
    for message in await every_way(chat, tiny, text):
        assert [call["args"] for call in message.tool_calls] == [{"q": "a"}]
        assert not message.invalid_tool_calls
        assert message.content == "Both. \n End."


def prompt_tokens(chat: Any, tool_choice: Any) -> int:
    return int(
        chat.bind_tools([TOOL], tool_choice=tool_choice).invoke("Hi", max_tokens=1).usage_metadata["input_tokens"]
    )


@pytest.mark.parametrize("tool_choice", ["none", {"type": "none"}, "auto", {"type": "auto"}, None, False])
def test_a_choice_that_forces_nothing(tiny: LoadedModel, tool_choice: Any) -> None:
    chat = ChatSpecKV(tiny, method="full")
    offered = prompt_tokens(chat, tool_choice) > chat.invoke("Hi", max_tokens=1).usage_metadata["input_tokens"]
    assert offered == (tool_choice not in ("none", {"type": "none"}))
    bound = chat.bind_tools([TOOL], tool_choice=tool_choice)
    assert bound.invoke("Hi", **saying(tiny.tokenizer, "No call.")).content == "No call."


@pytest.mark.parametrize(
    "tool_choice",
    [
        "any",
        "required",
        True,
        {"type": "any"},
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "search"},
        {"type": "function", "function": {"name": "search"}},
        {"type": "function", "name": "search"},
        "search",
    ],
)
def test_a_choice_that_forces_a_call(tiny: LoadedModel, tool_choice: Any) -> None:
    chat = ChatSpecKV(tiny, method="full", max_tokens=40)
    for runnable, given in ((chat.bind_tools([TOOL], tool_choice=tool_choice), {}),
                            (chat.bind_tools([TOOL]), {"tool_choice": tool_choice})):  # fmt: skip
        (call,) = runnable.invoke("Hi", **given).invalid_tool_calls  # the model knows nothing: the call is cut off
        assert call["args"].startswith('{"name":"search","arguments":{"q":"')


@pytest.mark.parametrize(
    "tool_choice", [{"type": "tool"}, {"type": "all"}, {}, {"type": "any", "name": "x"}, 3, "", {"function": "search"}]
)
def test_a_choice_that_is_unknown(tiny: LoadedModel, tool_choice: Any) -> None:
    chat = ChatSpecKV(tiny, method="full")
    with pytest.raises(InvalidInputError, match="tool_choice must be"):
        chat.bind_tools([TOOL], tool_choice=tool_choice)
    with pytest.raises(InvalidInputError, match="tool_choice must be"):
        chat.bind_tools([TOOL]).invoke("Hi", tool_choice=tool_choice)


def test_a_choice_of_a_tool_that_is_not_there(tiny: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="names 'find'; there are: search"):
        ChatSpecKV(tiny, method="full").bind_tools([TOOL], tool_choice={"type": "tool", "name": "find"}).invoke("Hi")
