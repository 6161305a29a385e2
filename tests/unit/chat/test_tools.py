"""Tool calls in the forms that open models write, and in the forms they get wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.chat.scanner import AnswerScanner
from draftapprox_integrations.chat.tools import (
    ParsedAnswer,
    ToolCall,
    ToolCallFilter,
    format_tool_calls,
    parse_tool_calls,
)

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


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER = '{"name": "weather", "arguments": {"town": "Oslo"}}'


@pytest.mark.parametrize(
    ("text", "left", "arguments"),
    [
        ('<tool_call>{"name": "add", "arguments": {"t": "Put </tool_call> here"}}</tool_call>', "", ["</tool_call>"]),
        ('<tool_call>{"name": "add", "arguments": {"t": "<tool_call>{"}}</tool_call>', "", ["<tool_call>{"]),
        ('<tool_call>{"name": "add", "arguments": {"t": "a\nb\tc"}}</tool_call>', "", ["a\nb\tc"]),
        ('[{"name": "add", "arguments": {"t": "a\nb"}}]', "", ["a\nb"]),
        ('{"name": "add", "arguments": "{\\"t\\": \\"a\nb\\"}"}', "", ["a\nb"]),
    ],
)
def test_strings_in_arguments_hold_tags_and_line_breaks(text: str, left: str, arguments: Any) -> None:
    answer = parse_tool_calls(text, NAMES)
    assert (answer.text, answer.invalid) == (left, [])
    assert [given in call.arguments["t"] for call, given in zip(answer.calls, arguments, strict=True)] == [True]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"Let me look. {CALL} Back soon.", "Let me look.  Back soon."),
        (f"{CALL}\nBack soon.\n", "Back soon."),
        (f"\n{CALL}\n\n{CALL}\n", ""),
        (f"One {CALL} two {CALL} three", "One  two  three"),
        (CALL.replace("}}", "}}}"), ""),  # a bracket too many
        (CALL.removesuffix("l_call>"), ""),  # cut off inside the closing tag
        (f"<tool_call>\n{CALL}", ""),
        (f"[TOOL_CALLS][{OTHER}] Back soon.", "Back soon."),
        (f"[1] says so. {CALL}", "[1] says so."),
    ],
)
def test_text_around_calls_is_kept(text: str, left: str) -> None:
    answer = parse_tool_calls(text, NAMES)
    assert answer.text == left
    assert answer.calls
    assert not answer.invalid


@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        (f"<think>I could use <tool_call> now.</think>\n{CALL}", "<think>I could use <tool_call> now.</think>", 1),
        (f"<think>Say {CALL}?</think>No.", f"<think>Say {CALL}?</think>No.", 0),
        (f"<think>Hm.</think>\n\n{OTHER}", "<think>Hm.</think>", 1),
        (f"<think>Cut off {CALL}", f"<think>Cut off {CALL}", 0),
        (f"A <think> later is text. {CALL}", "A <think> later is text.", 1),
    ],
)
def test_thoughts_are_not_searched_for_calls(text: str, left: str, calls: int) -> None:
    answer = parse_tool_calls(text, NAMES)
    assert (answer.text, len(answer.calls), answer.invalid) == (left, calls, [])
    answer = parse_tool_calls(text.removeprefix("<think>"), NAMES, in_thought=True)  # the prompt holds the tag
    if text.startswith("<think>"):
        assert (answer.text, len(answer.calls), answer.invalid) == (left.removeprefix("<think>"), calls, [])


def test_json_that_is_an_answer_is_not_searched_for_calls() -> None:
    text = json.dumps({"how": f"write {CALL}"})
    assert parse_tool_calls(text, NAMES) == ParsedAnswer(text)


def test_a_failed_call_ends_at_the_next_tag() -> None:
    answer = parse_tool_calls(f"<tool_call>{{add: 1</tool_call>{CALL}<tool_call>add(1){CALL} Done.", NAMES)
    assert [bad.text for bad in answer.invalid] == ["{add: 1", "add(1)"]
    assert (len(answer.calls), answer.text) == (2, "Done.")


@pytest.mark.parametrize("name", ['["add"]', "{}", "3", "null"])
def test_a_name_that_is_no_text(name: str) -> None:
    (bad,) = parse_tool_calls(f'<tool_call>{{"name": {name}}}</tool_call>', NAMES).invalid
    assert "there is no tool" in bad.error


PARTS = [
    CALL, OTHER, f"[{OTHER}]", "<tool_call>", "</tool_call>", "<tool", "</", "<think>", "</think>", "[TOOL_CALLS]",
    "<|python_tag|>", '{"name": "add"}', '{"a": "', '"', "\\", "{", "}", "[1]", " ", "\n\n", "word", "x < y", "é\u3000",
]  # fmt: skip


def streamed(text: str, cuts: Any, answer: ParsedAnswer, in_thought: bool = False) -> str:
    held, shown, position = ToolCallFilter(in_thought), "", 0
    for cut in cuts:
        shown += held.feed(text[position : position + cut])
        position += cut
    shown += held.feed(text[position:])
    return shown + held.rest(answer)


@given(
    st.lists(st.sampled_from(PARTS) | st.text("ab<tool_cal>{[ \n", max_size=6), max_size=12).map("".join),
    st.lists(st.integers(1, 9), max_size=60),
    st.booleans(),
)
def test_a_stream_shows_the_text_of_the_whole_answer(text: str, cuts: Any, in_thought: bool) -> None:
    calls: list[str] = []
    scanner = AnswerScanner(lambda written, marked: calls.append(written) is None, in_thought)
    answer = parse_tool_calls(text, NAMES, in_thought=in_thought)
    assert streamed(text, cuts, answer, in_thought) == answer.text
    position = 0
    for cut in [*cuts, len(text)]:
        scanner.feed(text[position : position + cut])
        position += cut
    scanner.finish()
    whole: list[str] = []
    at_once = AnswerScanner(lambda written, marked: whole.append(written) is None, in_thought)
    at_once.feed(text)
    at_once.finish()
    assert calls == whole
    if not answer.calls and not answer.invalid:
        assert answer.text == text


BEGINNINGS = ["", "a", "<tool_call>", CALL, '{"name": "add"}', "[TOOL_CALLS]", '<tool_call>{"a":"', "<think>"]
UNITS = [
    "<tool_call>", "</tool_call>", " ", "<tool_call> ", "<tool_call>x", "<tool_call>{</tool_call>", '<tool_call>{"',
    '<tool_call>["a",', '<tool_call>[\\"', '<tool_call>["<tool_call>",', "[", "{}", "<think></think>", "<", '"', "\\",
    CALL,
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_long_runs(unit: str) -> None:
    """A quadratic scanner would not come to an end here."""
    for beginning in BEGINNINGS:
        text = beginning + unit * (15_000 // len(unit))
        answer = parse_tool_calls(text, NAMES)
        assert streamed(text, [7] * (len(text) // 7), answer) == answer.text
