"""From messages to the prompt that a model's chat template makes of them.

Templates differ in what they accept: some refuse system messages, or two of a role in a row, or know no tools.
Messages are brought into a shape that the template takes; nothing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from .tools import ToolCall, describe_tools, write_tool_calls

Role = Literal["system", "user", "assistant", "tool"]

_SHORT = 128  # tokens: a message up to this long is never shortened by SpecPC


@dataclass(frozen=True)
class Message:
    """One message of a conversation, whatever the framework.

    Attributes:
        role: Who speaks.
        content: The text.
        tool_calls: Of an assistant.
        name: Of the tool that answers, or of the speaker.
        tool_call_id: Which call a tool answers.
    """

    role: Role
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    name: str | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What chat templates expect."""
        given: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            given["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.role == "tool":
            given |= {"name": self.name or "", "tool_call_id": self.tool_call_id or ""}
        return given


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model was made for chats."""
    return bool(tokenizer.chat_template)


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows tools to the model."""
    if not has_template(tokenizer):
        return False
    return "tools" in str(tokenizer.get_chat_template(tools=[{}]))


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> str:
    """The prompt, ending where the assistant is to write; or to go on, if the last message is the assistant's.

    Args:
        tokenizer: The target's.
        messages: At least one.
        tools: In OpenAI's layout, {"type": "function", "function": {...}}. A template that knows no tools gets them
            described in the system message.
        **options: Further variables of the template, such as `enable_thinking`.

    Raises:
        InvalidInputError: no template, no message, or the template refuses the conversation; says why.
    """
    if not has_template(tokenizer):
        raise InvalidInputError(
            "the target has no chat template, so it cannot chat. Use an instruct model, set tokenizer.chat_template, "
            "or use the completion class, SpecKVLLM."
        )
    if not messages:
        raise InvalidInputError("there are no messages; give at least one")
    if not takes_tools(tokenizer) and (tools or any(m.tool_calls or m.role == "tool" for m in messages)):
        messages, tools = _tools_as_text(messages, tools), ()
    merged = _merge(messages)
    last = merged[-1]
    goes_on = last.role == "assistant" and not last.tool_calls and bool(last.content)
    arguments: dict[str, Any] = {
        "tools": list(tools) or None,
        "add_generation_prompt": not goes_on,
        "continue_final_message": goes_on,
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


def protect_short(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], capacity: int
) -> tuple[list[int], list[bool]]:
    """Ids of a rendered chat, and which of them SpecPC must keep.

    Kept are the template's tail, then short system messages, then other short messages and the marks of
    roles from the newest back, up to half of `capacity`. Long messages, where the context is, may be shortened.
    """
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [False] * len(ids)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    regions: list[tuple[int, int, int, Role]] = []  # before the content, content, its end
    position = 0
    for message in messages:
        found = text.find(message.content.strip(), position)
        if found >= 0:
            regions.append((position, found, found + len(message.content.strip()), message.role))
            position = regions[-1][2]
    protected = [start >= position for start in starts]
    order = [region for region in regions if region[3] == "system"]
    order += [region for region in reversed(regions) if region[3] != "system"]
    for before, content, end, _ in order:
        inside = sum(content <= start < end for start in starts)
        stop = end if inside <= _SHORT else content
        wanted = [index for index, start in enumerate(starts) if before <= start < stop]
        if sum(protected) + len(wanted) <= capacity // 2:
            for index in wanted:
                protected[index] = True
    return encoded["input_ids"], protected


def _merge(messages: Iterable[Message]) -> list[Message]:
    """Neighbours of one role become one; calls and answers of tools stay apart."""
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
    """System messages become part of the user's next message, for templates that refuse them (Gemma's)."""
    folded: list[Message] = []
    for message in messages:
        folded.append(replace(message, role="user") if message.role == "system" else message)
    return folded


def _tools_as_text(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The same conversation for a template that knows no tools."""
    plain = [Message("system", describe_tools(tools))] if tools else []
    if messages[0].role == "system":
        plain = [messages[0], *plain]
        messages = messages[1:]
    for message in messages:
        if message.tool_calls:
            content = "\n".join(filter(None, (message.content, write_tool_calls(message.tool_calls))))
            plain.append(replace(message, content=content, tool_calls=[]))
        elif message.role == "tool":
            shown = json.dumps({"name": message.name, "content": message.content}, ensure_ascii=False)
            plain.append(Message("user", f"<tool_response>\n{shown}\n</tool_response>"))
        else:
            plain.append(message)
    return plain
