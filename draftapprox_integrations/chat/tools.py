"""Describe tools to a model, and format and parse its tool calls.

Supported formats are those open models are trained on: Hermes and Qwen (`<tool_call>{...}</tool_call>`), Llama 3 (a
bare JSON object with "parameters"), Mistral (`[TOOL_CALLS]` and a JSON list). Thoughts (`<think>...</think>`) before
the answer are text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from .scanner import CLOSE, OPEN, AnswerScanner


@dataclass(frozen=True)
class ToolCall:
    """A tool call requested by the model.

    Attributes:
        name: The tool's name.
        arguments: Argument values by parameter name.
        id: Identifies the call in the conversation.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class InvalidToolCall:
    """An attempted tool call that cannot be executed.

    Attributes:
        text: The model's text.
        error: Why the call is invalid.
        name: The tool's name, if it could be parsed.
    """

    text: str
    error: str
    name: str | None = None


@dataclass(frozen=True)
class ParsedAnswer:
    """A model's text, split into plain text and tool calls.

    Attributes:
        text: The text outside calls, thoughts included. White space beside calls is kept between texts only.
        calls: Valid calls, in the order written.
        invalid: Invalid calls, in the order written.
    """

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    invalid: list[InvalidToolCall] = field(default_factory=list)


def describe_tools(tools: Sequence[dict[str, Any]]) -> str:
    """Return a system message that describes tools, for models whose chat template does not render them."""
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        "You may call these functions to help with the user's request:\n"
        f"{listed}\n"
        "To call one, answer with its name and arguments as JSON between tags:\n"
        f'{OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{CLOSE}'
    )


def format_tool_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as text in the format that `describe_tools` asks for."""
    parts = []
    for call in calls:
        shown = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        parts.append(f"{OPEN}\n{shown}\n{CLOSE}")
    return "\n".join(parts)


def parse_tool_calls(text: str, names: Collection[str], *, in_thought: bool = False) -> ParsedAnswer:
    """Parse the tool calls in a model's text.

    Args:
        text: The complete answer.
        names: Names of the available tools. A bare JSON object is a call only if it names one of them.
        in_thought: Whether the text begins inside a thought, because the prompt ends with `<think>`.
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []

    def found(written: str, marked: bool) -> bool:
        given = _parse_json_calls(written, names)
        if isinstance(given, list):
            calls.extend(given)
        elif marked:
            invalid.append(given)
        return isinstance(given, list) and bool(given)

    scanner = AnswerScanner(found, in_thought)
    outside = scanner.feed(text) + scanner.finish()
    return ParsedAnswer(outside, calls, invalid)


class ToolCallFilter:
    """Streaming filter: passes on the text outside tool calls, exactly that of the parsed answer.

    Args:
        in_thought: As for `parse_tool_calls`.
    """

    def __init__(self, in_thought: bool = False) -> None:
        self._scanner = AnswerScanner(lambda written, marked: True, in_thought)
        self._shown = 0

    def feed(self, piece: str) -> str:
        """Add a piece of the stream; return the text that is certainly not part of a tool call."""
        shown = self._scanner.feed(piece)
        self._shown += len(shown)
        return shown

    def rest(self, parsed: ParsedAnswer) -> str:
        """Return the withheld text to show at the end.

        Args:
            parsed: The complete answer.
        """
        return parsed.text[self._shown :]


def _parse_json_calls(written: str, names: Collection[str]) -> list[ToolCall] | InvalidToolCall:
    try:
        parsed = json.loads(written, strict=False)  # small models write line breaks into strings
    except (ValueError, RecursionError) as error:
        return InvalidToolCall(written, f"not JSON: {error}")
    calls = []
    for item in parsed if isinstance(parsed, list) else [parsed]:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("arguments", item.get("parameters", {})) if isinstance(item, dict) else None
        if isinstance(arguments, str):  # some models write the arguments as a JSON string
            try:
                arguments = json.loads(arguments, strict=False)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(name, str) or name not in names:
            known = ", ".join(sorted(names))
            shown = name if isinstance(name, str) else None
            return InvalidToolCall(written, f"there is no tool {name!r}; there are: {known}", shown)
        if not isinstance(arguments, dict):
            return InvalidToolCall(written, "the arguments are not a JSON object", name)
        calls.append(ToolCall(name, arguments))
    return calls
