"""Describe tools to a model, and format and parse its tool calls.

Supported formats are those open models are trained on: Hermes and Qwen (`<tool_call>{...}</tool_call>`), Llama 3 (a
bare JSON object with "parameters"), Mistral (`[TOOL_CALLS]` and a JSON list).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAGGED = re.compile(rf"{_OPEN}\s*(.*?)\s*(?:{_CLOSE}|\Z)", re.DOTALL)
_PREFIX = re.compile(r"^\s*(?:\[TOOL_CALLS\]|<\|python_tag\|>)?\s*(?=[\[{])")


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
        text: The text outside calls.
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
        f'{_OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{_CLOSE}'
    )


def format_tool_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as text in the format that `describe_tools` asks for."""
    parts = []
    for call in calls:
        shown = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        parts.append(f"{_OPEN}\n{shown}\n{_CLOSE}")
    return "\n".join(parts)


def parse_tool_calls(text: str, names: Collection[str]) -> ParsedAnswer:
    """Parse the tool calls in a model's text.

    Args:
        text: The complete answer.
        names: Names of the available tools. A bare JSON object is a call only if it names one of them.
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    if _OPEN in text:
        for written in _TAGGED.findall(text):
            found = _parse_json_calls(written, names)
            for call in found if isinstance(found, list) else [found]:
                (calls if isinstance(call, ToolCall) else invalid).append(call)  # type: ignore[arg-type]
        return ParsedAnswer(_TAGGED.sub("", text).strip(), calls, invalid)
    prefix = _PREFIX.match(text)
    if prefix:
        found = _parse_json_calls(text[prefix.end() :].strip(), names)
        if isinstance(found, list) and found:
            return ParsedAnswer("", found)
        if "[TOOL_CALLS]" in prefix.group() and isinstance(found, InvalidToolCall):
            return ParsedAnswer("", [], [found])
    return ParsedAnswer(text)


class ToolCallFilter:
    """Streaming filter: passes text on until it may be a tool call, then withholds the rest."""

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0

    def feed(self, piece: str) -> str:
        """Add a piece of the stream; return the text that is certainly not part of a tool call."""
        self._text += piece
        if self._text.lstrip().startswith(("{", "[", "<|python_tag|>")):
            return ""
        safe = self._text.find(_OPEN)
        if safe < 0:
            safe = len(self._text)
            for length in range(min(len(_OPEN) - 1, safe), 0, -1):
                if self._text.endswith(_OPEN[:length]):
                    safe -= length
                    break
        shown, self._sent = self._text[self._sent : safe], max(self._sent, safe)
        return shown

    def rest(self, parsed: ParsedAnswer) -> str:
        """Return the withheld text to show at the end; empty if the complete answer has tool calls."""
        if parsed.calls or parsed.invalid:
            return ""
        return self._text[self._sent :]


def _parse_json_calls(written: str, names: Collection[str]) -> list[ToolCall] | InvalidToolCall:
    try:
        parsed = json.loads(written)
    except ValueError as error:
        return InvalidToolCall(written, f"not JSON: {error}")
    calls = []
    for item in parsed if isinstance(parsed, list) else [parsed]:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("arguments", item.get("parameters", {})) if isinstance(item, dict) else None
        if isinstance(arguments, str):  # some models write the arguments as a JSON string
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if name not in names:
            known = ", ".join(sorted(names))
            return InvalidToolCall(written, f"there is no tool {name!r}; there are: {known}", name)
        if not isinstance(arguments, dict):
            return InvalidToolCall(written, "the arguments are not a JSON object", name)
        calls.append(ToolCall(str(name), arguments))
    return calls
