"""Render messages with a model's chat template.

Templates differ in what they accept: some refuse or drop system messages, some refuse two messages of one role in a
row, some take one tool call at a time or render no tools. The conversation is converted to a form of which the template
drops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from .literal import EncodedPrompt, Marking, TextGuard
from .messages import Form, Message, Role, forms
from .tools import ToolCall

__all__ = ["Message", "Role", "encode_chat", "has_chat_template", "render_chat", "renders_tools"]

_SHORT_MESSAGE = 128  # tokens; SpecPC never shortens a message up to this long
_REFUSALS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)


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
    """Return the prompt for the assistant's next message as text; a last assistant message is continued.

    In the text, control tokens that a message spells cannot be told from the template's; `encode_chat` keeps them
    apart.

    Args:
        tokenizer: The target's tokenizer.
        messages: At least one message.
        tools: Tools in OpenAI's format, {"type": "function", "function": {...}}. If the template does not render
            tools, the system message describes them.
        **options: Further variables of the template, such as `enable_thinking`.

    Raises:
        InvalidInputError: there is no template or no message, or the template refuses the conversation or drops a part
            of it.
    """
    if not has_chat_template(tokenizer):
        raise InvalidInputError(
            "the target has no chat template, so it cannot chat. Use an instruct model, set tokenizer.chat_template, "
            "or use the completion class, SpecKVLLM."
        )
    if not messages:
        raise InvalidInputError("there are no messages; give at least one")
    refused: Exception | None = None
    dropped: list[str] = []
    for form in forms(messages, tools, native_tools=renders_tools(tokenizer)):
        try:
            shown = _apply(tokenizer, form, options)
        except _REFUSALS as error:
            refused = refused or error
            continue
        lost = _dropped(tokenizer, form, options)
        if not lost:
            return shown
        dropped = dropped or lost
    if refused is not None and not dropped:
        raise InvalidInputError(f"the model's chat template refuses these messages: {refused}") from refused
    raise InvalidInputError(f"the model's chat template drops {' and '.join(dropped)}; set another chat_template")


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
    options: Mapping[str, Any] | None = None,
    *,
    capacity: int | None = None,
) -> tuple[list[int], list[bool]]:
    """Render and tokenize a conversation; nothing in its texts becomes a control token.

    Args:
        tokenizer: The target's tokenizer.
        messages: At least one message.
        tools: Tools in OpenAI's format.
        options: Further variables of the template.
        capacity: Most tokens that SpecPC keeps. None: SpecPC is not in use.

    Returns:
        Token ids [tokens], and per id whether SpecPC must keep it. Always kept is the template's tail. Then short
        system messages are kept, then other short messages and the template's role markers from the newest back, up to
        half of `capacity`. Long messages may be shortened.

    Raises:
        InvalidInputError: as `render_chat`.
    """
    options = dict(options or {})
    guard = TextGuard(tokenizer, [list(messages), list(tools), options])

    def attempt(marking: Marking) -> tuple[str, list[Message], EncodedPrompt | None]:
        marked = [guard.mark(message, marking) for message in messages]
        fixed: Marking = "visible" if marking == "visible" else "exact"  # a schema's own words stay
        text = render_chat(tokenizer, marked, guard.mark(list(tools), fixed), **guard.mark(options, fixed))
        return text, marked, guard.encode(text)

    text, marked, encoded = attempt("exact")
    if guard.is_doubtful and encoded is not None:
        careful = attempt("careful")
        if careful[2] is None or careful[2].controls != encoded.controls:
            text, marked, encoded = careful
    if encoded is None:
        text, marked, encoded = attempt("visible")
        assert encoded is not None
    if capacity is None or encoded.starts is None:
        return encoded.ids, [False] * len(encoded.ids)
    return encoded.ids, _protect_short_messages(encoded.starts, text, marked, capacity)


def _protect_short_messages(starts: Sequence[int], text: str, messages: Sequence[Message], capacity: int) -> list[bool]:
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
    return protected


def _apply(tokenizer: PreTrainedTokenizerBase, form: Form, options: Mapping[str, Any]) -> str:
    last = form.messages[-1]
    continued = last.role == "assistant" and not last.tool_calls and bool(last.content)
    arguments: dict[str, Any] = {
        "tools": form.tools or None,
        "add_generation_prompt": not continued,
        "continue_final_message": continued,
        "tokenize": False,
        **options,
    }
    return str(tokenizer.apply_chat_template(form.as_dicts(), **arguments))


def _dropped(tokenizer: PreTrainedTokenizerBase, form: Form, options: Mapping[str, Any]) -> list[str]:
    """Return what the template leaves out, found by rendering probes in place of the texts."""
    wanted: list[tuple[str, str]] = []

    def probe(what: str) -> str:
        wanted.append((f"zq{len(wanted)}x", what))
        return wanted[-1][0]

    messages = []
    repr_of_arguments = []
    for message in form.messages:
        calls = []
        for call in message.tool_calls:
            arguments = {probe("arguments of tool calls"): probe("arguments of tool calls")} if call.arguments else {}
            repr_of_arguments += [repr(arguments)] if arguments else []
            calls.append(ToolCall(probe("tool calls"), arguments, call.id))
        content = probe(f"{message.role} messages") if message.content.strip() else message.content
        messages.append(replace(message, content=content, tool_calls=calls))
    tools = [_probe_tool(tool, probe("tools")) for tool in form.tools]
    try:
        shown = _apply(tokenizer, Form(messages, tools, form.arguments_as_text), options).lower()
    except _REFUSALS:  # the template checks the texts themselves; it rendered the real ones
        return []
    lost = [what for text, what in wanted if text not in shown]
    if any(text in shown for text in repr_of_arguments):
        lost.append("JSON of tool calls")  # a mapping printed by Python
    return list(dict.fromkeys(lost))


def _probe_tool(tool: dict[str, Any], name: str) -> dict[str, Any]:
    """Return `tool` under another name. A template that shows only part of a tool does so by its model's design."""
    if "function" in tool:
        return tool | {"function": tool["function"] | {"name": name}}
    return tool | {"name": name}
