"""Tool calls in the forms that open models write, and in the forms they get wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.chat.tools import ToolCall, ToolCallFilter, format_tool_calls, parse_tool_calls

NAMES = {"add", "weather"}


@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        ("Just text.", "Just text.", []),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "", [("add", {"a": 1})]),
        ('Well. <tool_call>{"name": "add", "arguments": {}}</tool_call>', "Well.", [("add", {})]),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "weather", '
            '"arguments": {"town": "Kraków"}}</tool_call>',
            "",
            [("add", {"a": 1}), ("weather", {"town": "Kraków"})],
        ),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}', "", [("add", {"a": 1})]),  # the end tag was cut off
        ('{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),  # Llama 3
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "", [("add", {"a": 1})]),  # Mistral
        ('[{"name": "add", "arguments": "{\\"a\\": 1}"}]', "", [("add", {"a": 1})]),  # arguments as a string
        ('{"name": "Ada", "born": 1815}', '{"name": "Ada", "born": 1815}', []),  # JSON that is an answer
        ("[1] says so", "[1] says so", []),
    ],
)
def test_what_models_write(text: str, left: str, calls: Any) -> None:
    answer = parse_tool_calls(text, NAMES)
    assert answer.text == left
    assert [(call.name, call.arguments) for call in answer.calls] == calls
    assert not answer.invalid


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>{'name': 'add'}</tool_call>", "not JSON"),
        ('<tool_call>{"name": "divide", "arguments": {}}</tool_call>', "no tool 'divide'; there are: add, weather"),
        ('<tool_call>{"name": "add", "arguments": 3}</tool_call>', "not a JSON object"),
        ('[TOOL_CALLS] [{"name": "add", "argum', "not JSON"),
    ],
)
def test_calls_that_cannot_be_made_are_told_apart_from_text(text: str, error: str) -> None:
    answer = parse_tool_calls(text, NAMES)
    assert not answer.calls
    assert error in answer.invalid[0].error


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)


@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=3))
def test_what_is_written_is_read(arguments: Any) -> None:
    calls = [ToolCall("add", given) for given in arguments]
    found = parse_tool_calls(format_tool_calls(calls), NAMES)
    assert [call.arguments for call in found.calls] == arguments


@given(st.text("ab<tool_cal>{[ \n", max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_a_stream_shows_what_the_whole_answer_shows(text: Any, cuts: Any) -> None:
    held, shown, position = ToolCallFilter(), "", 0
    for cut in [*cuts, len(text)]:
        shown += held.feed(text[position : position + cut])
        position += cut
    answer = parse_tool_calls(text, NAMES)
    if answer.calls or answer.invalid:
        assert text.startswith(shown)
        assert "<tool_call>" not in shown
    else:
        assert shown + held.rest(answer) == text
