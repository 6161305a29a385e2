"""Convert LlamaIndex's messages to `chat.template.Message`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from ..chat.template import Message, Role
from ..chat.tools import ToolCall
from ..errors import InvalidInputError

_ROLES: dict[MessageRole, Role] = {
    MessageRole.USER: "user", MessageRole.SYSTEM: "system", MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant", MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool", MessageRole.FUNCTION: "tool",
}  # fmt: skip
_WITHOUT_TEXT = {"tool_call", "thinking", "cache"}


def from_llama_index(messages: Sequence[ChatMessage]) -> list[Message]:
    """Convert a conversation.

    Raises:
        InvalidInputError: a message has content other than text.
    """
    return [
        Message(
            _ROLES[message.role],
            _text_of(message),
            tool_calls_of(message),
            name=message.additional_kwargs.get("name"),
            tool_call_id=message.additional_kwargs.get("tool_call_id"),
        )
        for message in messages
    ]


def tool_calls_of(message: ChatMessage) -> list[ToolCall]:
    """Return the tool calls of an assistant message, given as blocks or in OpenAI's format."""
    calls = []
    for block in message.blocks:
        if getattr(block, "block_type", None) == "tool_call":
            kwargs = getattr(block, "tool_kwargs", {})
            arguments = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
            calls.append(ToolCall(getattr(block, "tool_name", ""), arguments, getattr(block, "tool_call_id", "") or ""))
    for given in message.additional_kwargs.get("tool_calls", ()):
        plain: dict[str, Any] = given if isinstance(given, dict) else given.model_dump()
        function = plain["function"]
        written = function["arguments"]
        arguments = json.loads(written) if isinstance(written, str) else written
        call = ToolCall(function["name"], arguments, plain.get("id") or "")
        if all(call.id != known.id for known in calls):
            calls.append(call)
    return calls


def _text_of(message: ChatMessage) -> str:
    texts = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif getattr(block, "block_type", None) not in _WITHOUT_TEXT:
            raise InvalidInputError(
                f"a message holds a block of type {getattr(block, 'block_type', type(block).__name__)!r}; the target "
                "reads text only"
            )
    return "\n".join(texts)
