"""Read the messages and tools of a request in OpenAI's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from ..chat.messages import Message, Role
from ..chat.tools import ToolCall
from .openai_schema import refusal

_ROLES: dict[Any, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip


def read_messages(given: Sequence[dict[str, Any]]) -> list[Message]:
    """Convert a conversation.

    Raises:
        ServiceError: a message cannot be read, or holds something other than text.
    """
    if not given:
        raise refusal("messages", "there are no messages; give at least one")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(given)]


def read_tools(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check tools, and keep of each its name, description and parameters.

    Raises:
        ServiceError: a tool cannot be read, is no function, or has the name of another.
    """
    tools: list[dict[str, Any]] = []
    names = set()
    for index, tool in enumerate(given):
        where = f"tools[{index}]"
        if tool.get("type") != "function":
            raise refusal(f"{where}.type", f'must be "function"; got {_shown(tool.get("type"))}')
        function = tool.get("function")
        if not isinstance(function, dict):
            raise refusal(f"{where}.function", f"must be an object with a name; got {_shown(function)}")
        name, description = function.get("name"), function.get("description")
        parameters = function.get("parameters")
        if not isinstance(name, str) or not name:
            raise refusal(f"{where}.function.name", f"must be a text that is not empty; got {_shown(name)}")
        if name in names:
            raise refusal(f"{where}.function.name", f"another tool is called {_shown(name)}; rename one")
        if not isinstance(description, str | None):
            raise refusal(f"{where}.function.description", f"must be a text; got {_shown(description)}")
        if not isinstance(parameters, dict | None):
            raise refusal(f"{where}.function.parameters", f"must be a JSON schema, an object; got {_shown(parameters)}")
        names.add(name)
        function = {"name": name, "description": description or ""}
        function["parameters"] = parameters or {"type": "object", "properties": {}}
        tools.append({"type": "function", "function": function})
    return tools


def _message(given: dict[str, Any], where: str) -> Message:
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise refusal(f"{where}.role", f"must be one of {', '.join(_ROLES)}; got {_shown(role)}")
    for name, advice in (("function_call", "use tool_calls, which took its place"), ("audio", "send text")):
        if given.get(name) is not None:
            raise refusal(f"{where}.{name}", advice, "unsupported_parameter")
    calls = given.get("tool_calls") or []
    if calls and role != "assistant":
        raise refusal(f"{where}.tool_calls", f"only messages of the assistant have tool calls; this one is of {role}")
    if not isinstance(calls, list):
        raise refusal(f"{where}.tool_calls", f"must be a list; got {_shown(calls)}")
    return Message(
        _ROLES[role],
        _text(given.get("content"), role, f"{where}.content"),
        [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)],
        name=_optional_text(given, "name", where),
        tool_call_id=_optional_text(given, "tool_call_id", where),
    )


def _text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise refusal(where, f"must be a text or a list of text parts; got {_shown(content)}")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            raise refusal(
                f"{where}[{index}]",
                f"the model reads text only, so send parts {{'type': 'text', 'text': ...}}; got type {_shown(kind)}",
            )
        if not isinstance(part.get(kind), str):
            raise refusal(f"{where}[{index}].{kind}", f"must be a text; got {_shown(part.get(kind))}")
        texts.append(part[kind])
    return "\n".join(texts)


def _tool_call(given: Any, where: str) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict):
        raise refusal(where, "must be {'id': ..., 'type': 'function', 'function': {'name': ..., 'arguments': ...}}")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise refusal(f"{where}.function.name", f"must be a text that is not empty; got {_shown(name)}")
    if isinstance(arguments, str):
        try:
            arguments = from_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise refusal(f"{where}.function.arguments", f"must be the text of a JSON object: {error}") from error
    if not isinstance(arguments, dict):
        raise refusal(f"{where}.function.arguments", f"must be the text of a JSON object; got {_shown(arguments)}")
    return ToolCall(name, arguments, _optional_text(given, "id", where) or "")


def _optional_text(given: dict[str, Any], name: str, where: str) -> str | None:
    value = given.get(name)
    if not isinstance(value, str | None):
        raise refusal(f"{where}.{name}", f"must be a text; got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
