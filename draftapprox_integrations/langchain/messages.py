"""Convert LangChain's messages to `chat.template.Message`."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from ..chat.template import Message, Role
from ..chat.tools import ToolCall
from ..errors import InvalidInputError

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "system": "system", "developer": "system", "ai": "assistant",
    "assistant": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip
# Blocks that are not sent to the model as text: calls come from `tool_calls`, reasoning is not sent back.
_WITHOUT_TEXT = {
    "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking", "redacted_thinking",
    "function_call", "server_tool_call", "server_tool_result", "non_standard",
}  # fmt: skip


def from_langchain(messages: Sequence[BaseMessage]) -> list[Message]:
    """Convert a conversation.

    Raises:
        InvalidInputError: a message has content other than text, or an unknown role.
    """
    return [_convert(message) for message in messages]


def _convert(message: BaseMessage) -> Message:
    text = _text_of(message)
    if isinstance(message, AIMessage):
        calls = [ToolCall(call["name"], call["args"], call["id"] or "") for call in message.tool_calls]
        return Message("assistant", text, calls)
    if isinstance(message, ToolMessage):
        return Message("tool", text, name=message.name, tool_call_id=message.tool_call_id)
    if isinstance(message, FunctionMessage):
        return Message("tool", text, name=message.name)
    if isinstance(message, SystemMessage):
        return Message("system", text)
    if isinstance(message, HumanMessage):
        return Message("user", text, name=message.name)
    role = _ROLES.get(message.role if isinstance(message, ChatMessage) else message.type)
    if role is None:
        raise InvalidInputError(f"a message has the role {getattr(message, 'role', message.type)!r}; use user, "
                                "assistant, system or tool")  # fmt: skip
    return Message(role, text)


def _text_of(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block.get("text", "")))
        elif block.get("type") == "tool_result":
            raise InvalidInputError("tool results go into a ToolMessage, not into a block of another message")
        elif block.get("type") not in _WITHOUT_TEXT:
            raise InvalidInputError(
                f"a message holds a block of type {block.get('type')!r}; the target reads text only"
            )
    return "\n".join(texts)
