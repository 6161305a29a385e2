"""Read `tool_choice` as OpenAI's and Anthropic's interfaces write it."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInputError

_KINDS = {"auto": "auto", "none": "none", "any": "any", "required": "any"}


def as_tool_choice(given: Any) -> str:
    """Return "auto", "none", "any", or the name of a tool.

    Args:
        given: One of these, "required", a bool, None (the model decides), `{"type": "auto" | "none" | "any"}`,
            `{"type": "tool", "name": ...}`, or `{"type": "function", "function": {"name": ...}}`.

    Raises:
        InvalidInputError: anything else.
    """
    if given is None or isinstance(given, bool):
        return "any" if given else "auto"
    if isinstance(given, str) and given:
        return _KINDS.get(given, given)
    if isinstance(given, dict):
        kind, function = given.get("type"), given.get("function")
        name = function.get("name") if isinstance(function, dict) else given.get("name")
        if kind in (None, "tool", "function") and isinstance(name, str) and name:
            return name
        if kind in _KINDS and name is None:
            return _KINDS[kind]
    raise InvalidInputError(
        'tool_choice must be "auto", "none", "any", a tool\'s name, {"type": "auto"}, {"type": "none"}, '
        f'{{"type": "any"}}, {{"type": "tool", "name": ...}} or OpenAI\'s {{"type": "function", ...}}; got {given!r}'
    )


def forbids_parallel_calls(tool_choice: Any) -> bool:
    """Return whether a choice in Anthropic's layout asks for one call at most."""
    return isinstance(tool_choice, dict) and tool_choice.get("disable_parallel_tool_use") is True
