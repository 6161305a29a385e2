"""Tool calls in the text of a model: how they are described, written and read.

Read are the forms that open models are trained on: Hermes and Qwen (`<tool_call>{...}</tool_call>`), Llama 3 (a bare
JSON object with "parameters"), Mistral (`[TOOL_CALLS]` and a JSON list).
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
    """A call the model wants made.

    Attributes:
        name: Of the tool.
        arguments: By parameter name.
        id: Tells calls apart.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class InvalidToolCall:
    """What looks like a call and cannot be made.

    Attributes:
        text: As written.
        error: Why not.
        name: Of the tool, where that much could be read.
    """

    text: str
    error: str
    name: str | None = None


@dataclass(frozen=True)
class Answer:
    """A model's text, taken apart.

    Attributes:
        text: What is not a call.
        calls: In the order written.
        invalid: Attempts that failed.
    """

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    invalid: list[InvalidToolCall] = field(default_factory=list)


def describe_tools(tools: Sequence[dict[str, Any]]) -> str:
    """Tools for the system message of a model whose template has no place for them."""
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        "You may call these functions to help with the user's request:\n"
        f"{listed}\n"
        "To call one, answer with its name and arguments as JSON between tags:\n"
        f'{_OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{_CLOSE}'
    )


def write_tool_calls(calls: Sequence[ToolCall]) -> str:
    """Calls as the model itself would have written them."""
    parts = []
    for call in calls:
        shown = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        parts.append(f"{_OPEN}\n{shown}\n{_CLOSE}")
    return "\n".join(parts)


def read_tool_calls(text: str, names: Collection[str]) -> Answer:
    """Take the calls out of what a model wrote.

    Args:
        text: The whole answer.
        names: Tools there are; a bare JSON object counts as a call only if it names one of them.
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    if _OPEN in text:
        for written in _TAGGED.findall(text):
            found = _as_calls(written, names)
            for call in found if isinstance(found, list) else [found]:
                (calls if isinstance(call, ToolCall) else invalid).append(call)  # type: ignore[arg-type]
        return Answer(_TAGGED.sub("", text).strip(), calls, invalid)
    prefix = _PREFIX.match(text)
    if prefix:
        found = _as_calls(text[prefix.end() :].strip(), names)
        if isinstance(found, list) and found:
            return Answer("", found)
        if "[TOOL_CALLS]" in prefix.group() and isinstance(found, InvalidToolCall):
            return Answer("", [], [found])
    return Answer(text)


class ToolFilter:
    """For streams: lets text through until it may be a tool call, and holds the rest back for `read_tool_calls`."""

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0

    def feed(self, piece: str) -> str:
        """The text that is certainly not part of a call."""
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

    def rest(self, answer: Answer) -> str:
        """What is to be shown yet once the whole answer was taken apart."""
        if answer.calls or answer.invalid:
            return ""
        return self._text[self._sent :]


def _as_calls(written: str, names: Collection[str]) -> list[ToolCall] | InvalidToolCall:
    try:
        parsed = json.loads(written)
    except ValueError as error:
        return InvalidToolCall(written, f"not JSON: {error}")
    calls = []
    for item in parsed if isinstance(parsed, list) else [parsed]:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("arguments", item.get("parameters", {})) if isinstance(item, dict) else None
        if isinstance(arguments, str):  # some models write the arguments as JSON inside a string
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
