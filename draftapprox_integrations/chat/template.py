"""Render messages with a model's chat template.

Templates differ in what they accept: some refuse system messages, some refuse two messages of one role in a row, some
do not render tools. Messages are converted to a form the template accepts; no text is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from .tools import ToolCall, describe_tools, format_tool_calls

Role = Literal["system", "user", "assistant", "tool"]

_SHORT_MESSAGE = 128  # tokens; SpecPC never shortens a message up to this long


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

    def as_dict(self) -> dict[str, Any]:
        """Return the message in the format of transformers' chat templates."""
        given: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            given["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.role == "tool":
            given |= {"name": self.name or "", "tool_call_id": self.tool_call_id or ""}
        return given


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template, as those of instruct models do."""
    return bool(tokenizer.chat_template)


def renders_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template renders tools."""
    if not has_chat_template(tokenizer):
        return False
    return "tools" in str(tokenizer.get_chat_template(tools=[{}]))


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> str:
    """Return the prompt for the assistant's next message; a last assistant message is continued.

    Args:
        tokenizer: The target's tokenizer.
        messages: At least one message.
        tools: Tools in OpenAI's format, {"type": "function", "function": {...}}. If the template does not render
            tools, the system message describes them.
        **options: Further variables of the template, such as `enable_thinking`.

    Raises:
        InvalidInputError: there is no template or no message, or the template refuses the conversation.
    """
    if not has_chat_template(tokenizer):
        raise InvalidInputError(
            "the target has no chat template, so it cannot chat. Use an instruct model, set tokenizer.chat_template, "
            "or use the completion class, SpecKVLLM."
        )
    if not messages:
        raise InvalidInputError("there are no messages; give at least one")
    if not renders_tools(tokenizer) and (tools or any(m.tool_calls or m.role == "tool" for m in messages)):
        messages, tools = _tools_as_text(messages, tools), ()
    merged = _merge(messages)
    last = merged[-1]
    continued = last.role == "assistant" and not last.tool_calls and bool(last.content)
    arguments: dict[str, Any] = {
        "tools": list(tools) or None,
        "add_generation_prompt": not continued,
        "continue_final_message": continued,
        "tokenize": False,
        **options,
    }
    refused: Exception | None = None
    for attempt in (merged, _merge(_fold_system(merged))):
        try:
            return str(tokenizer.apply_chat_template([m.as_dict() for m in attempt], **arguments))
        except (TemplateError, ValueError, TypeError) as error:
            refused = refused or error
    raise InvalidInputError(f"the model's chat template refuses these messages: {refused}") from refused


def protect_short_messages(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], capacity: int
) -> tuple[list[int], list[bool]]:
    """Tokenize a rendered chat and mark the tokens that SpecPC must keep.

    Always kept is the template's tail. Then short system messages are kept, then other short messages and the
    template's role markers from the newest back, up to half of `capacity`. Long messages may be shortened.

    Args:
        tokenizer: The target's tokenizer.
        text: The output of `render_chat` for `messages`.
        messages: The conversation.
        capacity: Most tokens that SpecPC keeps.

    Returns:
        Token ids [tokens], and per id whether it is protected.
    """
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [False] * len(ids)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    regions: list[tuple[int, int, int, Role]] = []  # start of the role marker, of the content, its end, the role
    position = 0
    for message in messages:
        content = message.content.strip()
        found = text.find(content, position)
        if found >= 0:
            regions.append((position, found, found + len(content), message.role))
            position = found + len(content)
    protected = [start >= position for start in starts]
    by_priority = [region for region in regions if region[3] == "system"]
    by_priority += [region for region in reversed(regions) if region[3] != "system"]
    for marker, content_start, content_end, _ in by_priority:
        length = sum(content_start <= start < content_end for start in starts)
        stop = content_end if length <= _SHORT_MESSAGE else content_start
        candidates = [index for index, start in enumerate(starts) if marker <= start < stop]
        if sum(protected) + len(candidates) <= capacity // 2:
            for index in candidates:
                protected[index] = True
    return encoded["input_ids"], protected


def _merge(messages: Iterable[Message]) -> list[Message]:
    """Join consecutive messages of one role; tool calls and tool results stay separate."""
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else None
        if before is None or before.role != message.role or message.role == "tool" or before.tool_calls:
            merged.append(message)
        else:
            content = "\n\n".join(filter(None, (before.content, message.content)))
            merged[-1] = replace(before, content=content, tool_calls=message.tool_calls)
    return merged


def _fold_system(messages: Iterable[Message]) -> list[Message]:
    """Turn system messages into user messages, for templates that refuse them, such as Gemma's."""
    return [replace(message, role="user") if message.role == "system" else message for message in messages]


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
