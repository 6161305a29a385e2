"""Tool calls that a scripted model writes, as LlamaIndex's users see them."""

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

from draftapprox_integrations import LoadedModel
from draftapprox_integrations.llama_index import SpecKVLLM
from tests.helpers.scripted import saying


def search(q: str) -> str:
    """Search."""
    return q


TOOL = FunctionTool.from_defaults(search)
CALL = '<tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call>'
OTHER = CALL.replace('"a"', '"b"')


async def every_way(llm: SpecKVLLM, text: str, **given: Any) -> list[tuple[Any, str]]:
    """Responses of the four ways to call it, with the text that a user saw."""

    def options() -> Any:
        return saying(llm.load().target.require_tokenizer(), text) | given

    whole = llm.chat_with_tools([TOOL], "Hi", **options())
    awhole = await llm.achat_with_tools([TOOL], "Hi", **options())
    parts = list(llm.stream_chat_with_tools([TOOL], "Hi", **options()))
    aparts = [part async for part in await llm.astream_chat_with_tools([TOOL], "Hi", **options())]
    return [
        (whole, whole.message.content or ""),
        (awhole, awhole.message.content or ""),
        (parts[-1], "".join(part.delta or "" for part in parts)),
        (aparts[-1], "".join(part.delta or "" for part in aparts)),
    ]


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (f"Let me look. {CALL} Back soon.", "Let me look.  Back soon.", 1),
        (f"<think>Use <tool_call>?</think>\n{CALL}", "<think>Use <tool_call>?</think>", 1),
        (CALL.replace('"a"', '"</tool_call>\n"'), "", 1),
        ("a <tool_calm> b\n", "a <tool_calm> b\n", 0),
    ],
)
async def test_a_stream_shows_the_same_as_chat(tiny: LoadedModel, text: str, shown: str, calls: int) -> None:
    llm = SpecKVLLM(tiny, method="full")
    for response, seen in await every_way(llm, text):
        assert seen == shown
        assert (response.message.content or "") == shown
        assert len(llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)) == calls


async def test_a_message_with_calls_is_sent_back(tiny: LoadedModel) -> None:
    llm = SpecKVLLM(tiny, method="full")
    for response, _ in await every_way(llm, f"Let me look. {CALL} Back soon."):
        history = [ChatMessage(role="user", content="Hi"), response.message]
        assert llm.chat(history, max_tokens=1).message


async def test_parallel_calls_switched_off_and_on(tiny: LoadedModel) -> None:
    llm = SpecKVLLM(tiny, method="full")
    both = f"{CALL}\n{OTHER}"
    for given, expected in (
        ({}, 1),
        ({"allow_parallel_tool_calls": False}, 1),
        ({"allow_parallel_tool_calls": True}, 2),
    ):
        for response, _ in await every_way(llm, both, **given):
            assert len(llm.get_tool_calls_from_response(response)) == expected


@pytest.mark.parametrize("tool_choice", [{"type": "any"}, {"type": "tool", "name": "search"}, "required"])
def test_a_choice_in_another_layout(tiny: LoadedModel, tool_choice: Any) -> None:
    response = SpecKVLLM(tiny, method="full", max_tokens=40).chat_with_tools([TOOL], "Hi", tool_choice=tool_choice)
    (bad,) = response.additional_kwargs["invalid_tool_calls"]
    assert bad["text"].startswith('{"name":"search"')
