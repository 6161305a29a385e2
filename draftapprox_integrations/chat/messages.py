"""A conversation, independent of any framework, and its forms for templates that differ in what they accept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .tools import ToolCall, describe_tools, format_tool_calls

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation, independent of any framework.

    Attributes:
        role: The speaker's role.
        content: The text.
        tool_calls: Calls requested by an assistant message.
        name: Name of the answering tool, or of the speaker.
        tool_call_id: Id of the call that a tool message answers.
    """

    role: Role
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Form:
    """A conversation in a form that a template may accept.

    Attributes:
        messages: The messages; neighbours of one role are joined.
        tools: Tools for the template; empty if a message describes them.
        arguments_as_text: Whether the arguments of calls are JSON text instead of a mapping.
    """

    messages: list[Message]
    tools: list[dict[str, Any]]
    arguments_as_text: bool = False

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the messages in the format of transformers' chat templates."""
        return [self._as_dict(message) for message in self.messages]

    def _as_dict(self, message: Message) -> dict[str, Any]:
        given: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            given["tool_calls"] = []
            for call in message.tool_calls:
                arguments: Any = call.arguments
                if self.arguments_as_text:
                    arguments = json.dumps(arguments, ensure_ascii=False)
                function = {"name": call.name, "arguments": arguments}
                given["tool_calls"].append({"type": "function", "id": call.id, "function": function})
        if message.role == "tool":
            given |= {"name": message.name or "", "tool_call_id": message.tool_call_id or ""}
        return given


def forms(messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, native_tools: bool) -> Iterator[Form]:
    """Yield the forms of a conversation, those closest to what was given first.

    Args:
        messages: The conversation.
        tools: Tools in OpenAI's format.
        native_tools: Whether the template renders tools. If not, tools, calls and results are written as text.
    """
    messages = _paired_results(messages)
    with_calls = any(message.tool_calls or message.role == "tool" for message in messages)
    if native_tools or not (tools or with_calls):
        for single in (False, True) if with_calls else (False,):
            for short_ids in (False, True) if with_calls else (False,):
                changed = _one_call_each(messages) if single else messages
                changed = _with_short_ids(changed) if short_ids else changed
                for as_text in (False, True) if with_calls else (False,):
                    for spoken in _system_forms(changed):
                        yield Form(_merge(spoken), list(tools), as_text)
    if tools or with_calls:
        for spoken in _system_forms(_tools_as_text(messages, tools)):
            yield Form(_merge(spoken), [])


def _system_forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the messages as they are, with later system messages as the user's, and with all of them so."""
    yield list(messages)
    if not any(message.role == "system" for message in messages):
        return
    merged = _merge(messages)
    yield [merged[0], *_fold_system(merged[1:])]
    yield _fold_system(merged)


def _merge(messages: Iterable[Message]) -> list[Message]:
    """Join consecutive messages of one role; tool calls and tool results stay separate."""
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else None
        apart = message.role == "tool" or bool(message.tool_calls and not message.content)
        if before is None or before.role != message.role or apart or before.tool_calls:
            merged.append(message)
        else:
            content = "\n\n".join(filter(None, (before.content, message.content)))
            merged[-1] = replace(before, content=content, tool_calls=message.tool_calls)
    return merged


def _fold_system(messages: Iterable[Message]) -> list[Message]:
    """Turn system messages into user messages, for templates that refuse or drop them."""
    return [replace(message, role="user") if message.role == "system" else message for message in messages]


def _paired_results(messages: Sequence[Message]) -> list[Message]:
    """Put tool results in the order of their calls, and name the tool that answered where the name is missing."""
    paired: list[Message] = []
    index = 0
    names: dict[str | None, str] = {}
    while index < len(messages):
        message = messages[index]
        index += 1
        if message.role != "tool":
            names |= {call.id: call.name for call in message.tool_calls if call.id}
            paired.append(message)
            continue
        results = [message]
        while index < len(messages) and messages[index].role == "tool":
            results.append(messages[index])
            index += 1
        order = {call.id: place for place, call in enumerate(paired[-1].tool_calls)} if paired else {}
        if all(result.tool_call_id in order for result in results):
            results.sort(key=lambda result: order[result.tool_call_id or ""])
        paired += [replace(result, name=result.name or names.get(result.tool_call_id)) for result in results]
    return paired


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Split messages with text and calls, each call followed by its result, for templates that take one at a time."""
    split: list[Message] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        if not message.tool_calls:
            split.append(message)
            continue
        results: list[Message] = []
        while index < len(messages) and messages[index].role == "tool":
            results.append(messages[index])
            index += 1
        if message.content:
            split.append(replace(message, tool_calls=[]))
        by_id = len({call.id for call in message.tool_calls}) == len(message.tool_calls)
        for place, call in enumerate(message.tool_calls):
            split.append(replace(message, content="", tool_calls=[call]))
            if by_id and any(result.tool_call_id == call.id for result in results):
                own = [result for result in results if result.tool_call_id == call.id]
            else:  # results without ids answer in the order of the calls
                own = [] if place >= len(results) or results[place].tool_call_id else [results[place]]
            split += own
            results = [result for result in results if result not in own] if by_id else results
        split += [result for result in results if result not in split]
    return split


def _with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Replace the ids of calls by 9 letters and digits, as Mistral's templates require."""

    def short(given: str | None) -> str:
        if given and len(given) == 9 and given.isascii() and given.isalnum():
            return given
        return hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).hexdigest()[:9]

    return [
        replace(
            message,
            tool_calls=[replace(call, id=short(call.id)) for call in message.tool_calls],
            tool_call_id=short(message.tool_call_id) if message.role == "tool" else message.tool_call_id,
        )
        for message in messages
    ]


def _tools_as_text(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Write tools, tool calls and tool results as text, for templates that do not render tools."""
    plain = [Message("system", describe_tools(tools))] if tools else []
    if messages[0].role == "system":
        plain = [messages[0], *plain]
        messages = messages[1:]
    for message in messages:
        if message.tool_calls:
            content = "\n".join(filter(None, (message.content, format_tool_calls(message.tool_calls))))
            plain.append(replace(message, content=content, tool_calls=[]))
        elif message.role == "tool":
            shown = json.dumps({"name": message.name, "content": message.content}, ensure_ascii=False)
            plain.append(Message("user", f"<tool_response>\n{shown}\n</tool_response>"))
        else:
            plain.append(message)
    return plain
