"""One call of a chat model, for any framework: messages, tools and a wanted shape become ids and options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import SpecKVPCConfig, SpecPCConfig
from ..engine.engine import SpecKV
from .grammar import JsonOnly, call_schema
from .template import Message, protect_short, render_chat
from .tools import Answer, InvalidToolCall, read_tool_calls


@dataclass(frozen=True)
class ChatCall:
    """What goes to the engine, and how its answer is to be read.

    Attributes:
        ids: The prompt.
        options: Further arguments of `SpecKV.submit`.
        tool_names: Tools the model may call; empty: its text is taken as it is.
        forced: It can write nothing but a call.
    """

    ids: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    tool_names: frozenset[str] = frozenset()
    forced: bool = False

    def read(self, text: str) -> Answer:
        """The answer, with its tool calls taken out."""
        if not self.tool_names:
            return Answer(text)
        answer = read_tool_calls(text, self.tool_names)
        if self.forced and not answer.calls:  # the grammar lets nothing else through, so it is only a beginning
            return Answer("", [], [InvalidToolCall(text, "the call was cut off before its end; allow more tokens")])
        return answer


def prepare_chat(
    engine: SpecKV,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] = (),
    tool_choice: str = "auto",
    schema: dict[str, Any] | None = None,
    tell: bool = True,
    template_options: Mapping[str, Any] | None = None,
) -> ChatCall:
    """Render, tokenize, and make the grammar where the answer's form is to be enforced.

    Args:
        engine: Whose target answers.
        messages: The conversation.
        tools: In OpenAI's layout.
        tool_choice: "auto", "none", "any", or a tool's name.
        schema: The answer is to be JSON of this schema.
        tell: Say so in the system message.
        template_options: Further variables of the chat template.

    Raises:
        InvalidInputError: the template refuses the messages, there is no such tool, or a schema cannot be enforced.
        MissingDependencyError: the form is to be enforced and llguidance is not installed.
    """
    tokenizer = engine.target.require_tokenizer()
    if tool_choice == "none":
        tools = ()
    options: dict[str, Any] = {}
    names: frozenset[str] = frozenset(tool.get("function", tool)["name"] for tool in tools)
    forced = bool(tools) and tool_choice != "auto"
    if forced:
        wanted = call_schema(tools, None if tool_choice == "any" else tool_choice)
        options["logits_processor"] = [JsonOnly(engine.target, wanted)]
    elif schema is not None:
        options["logits_processor"] = [JsonOnly(engine.target, schema)]
        messages = _tell(messages, schema) if tell else messages
    text = render_chat(tokenizer, messages, tools, **(template_options or {}))
    if isinstance(engine.config, SpecKVPCConfig | SpecPCConfig):
        specpc = engine.config.specpc if isinstance(engine.config, SpecKVPCConfig) else engine.config
        ids, protected = protect_short(tokenizer, text, messages, specpc.max_capacity_prompt)
        options["protected"] = [protected]
    else:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ChatCall(ids, options, names, forced)


def _tell(messages: Sequence[Message], schema: dict[str, Any]) -> list[Message]:
    shown = json.dumps(schema, ensure_ascii=False)
    return [Message("system", f"Answer with one JSON object of this schema:\n{shown}"), *messages]
