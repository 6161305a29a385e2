"""Turn messages, tools and a wanted JSON schema into a prompt and options for the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import SpecKVPCConfig, SpecPCConfig
from ..engine.engine import SpecKV
from ..errors import InvalidInputError
from .grammar import JsonConstraint
from .schemas import answer_or_call_schema, call_schema
from .template import Message, encode_chat
from .tool_choice import as_tool_choice, forbids_parallel_calls
from .tools import InvalidToolCall, ParsedAnswer, ToolCallFilter, parse_tool_calls


@dataclass(frozen=True)
class ChatCall:
    """A rendered conversation, ready for the engine, and how to parse its answer.

    Attributes:
        ids: Token ids of the prompt.
        options: Further arguments of `SpecKV.submit`.
        tool_names: Names of the tools the model may call. Empty: the answer is plain text.
        forced: Whether the answer is constrained to a tool call.
        in_thought: Whether the answer begins inside a thought, because the prompt ends with `<think>`.
        single_call: Whether only the first call counts.
    """

    ids: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    tool_names: frozenset[str] = frozenset()
    forced: bool = False
    in_thought: bool = False
    single_call: bool = False

    def parse(self, text: str) -> ParsedAnswer:
        """Split the model's text into plain text and tool calls."""
        if not self.tool_names:
            return ParsedAnswer(text)
        parsed = parse_tool_calls(text, self.tool_names, in_thought=self.in_thought)
        if self.forced and not parsed.calls:  # the constraint allows nothing but a call, so this is an unfinished one
            invalid = InvalidToolCall(text, "the call was cut off before its end; allow more tokens")
            return ParsedAnswer("", [], [invalid])
        if self.single_call and parsed.calls:
            return ParsedAnswer(parsed.text, parsed.calls[:1])
        return parsed

    def stream_filter(self) -> ToolCallFilter | None:
        """Return a filter that keeps tool calls out of a stream; None if there are no tools."""
        return ToolCallFilter(self.in_thought) if self.tool_names else None


def prepare_chat(
    engine: SpecKV,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] = (),
    tool_choice: Any = "auto",
    parallel_tool_calls: bool | None = None,
    schema: dict[str, Any] | None = None,
    show_schema: bool = True,
    template_options: Mapping[str, Any] | None = None,
) -> ChatCall:
    """Render and tokenize a conversation; add a constraint where the form of the answer is enforced.

    Args:
        engine: The engine whose target answers.
        messages: The conversation.
        tools: Tools in OpenAI's format.
        tool_choice: "auto", "none", "any", a tool's name, or another form that `as_tool_choice` reads.
        parallel_tool_calls: Whether an answer may have several calls; False keeps the first. None: they may, unless
            `tool_choice` forbids it.
        schema: JSON schema of the answer. With tools and `tool_choice="auto"` the model may write a tool call instead.
        show_schema: Whether to add the schema to the system message.
        template_options: Further variables of the chat template.

    Raises:
        InvalidInputError: the template refuses the messages, the tool does not exist, `tool_choice` is unknown, or a
            schema cannot be enforced.
        MissingDependencyError: a constraint is needed and llguidance is not installed.
    """
    tokenizer = engine.target.require_tokenizer()
    single_call = parallel_tool_calls is False or (parallel_tool_calls is None and forbids_parallel_calls(tool_choice))
    tool_choice = as_tool_choice(tool_choice)
    if tool_choice == "none":
        tools = ()
    tool_names = frozenset(tool.get("function", tool)["name"] for tool in tools)
    forced = bool(tools) and tool_choice != "auto"
    enforced: dict[str, Any] | None = None
    if forced:
        enforced = call_schema(tools, None if tool_choice == "any" else tool_choice)
    elif schema is not None:
        enforced = answer_or_call_schema(schema, tools) if tools else schema
        messages = _with_schema(messages, schema) if show_schema else messages
    options: dict[str, Any] = {}
    if enforced is not None:
        options["logits_processor"] = [JsonConstraint(engine.target, enforced)]
    if isinstance(engine.config, SpecKVPCConfig | SpecPCConfig):
        specpc = engine.config.specpc_config if isinstance(engine.config, SpecKVPCConfig) else engine.config
        capacity = specpc.max_capacity_prompt
        ids, protected = encode_chat(tokenizer, messages, tools, template_options, capacity=capacity)
        options["protected"] = [protected]
    else:
        ids, _ = encode_chat(tokenizer, messages, tools, template_options)
    in_thought = enforced is None and str(tokenizer.decode(ids[-16:])).rstrip().endswith("<think>")
    return ChatCall(ids, options, tool_names, forced, in_thought, single_call)


def prepare_text(engine: SpecKV, prompt: str, schema: dict[str, Any] | None = None) -> ChatCall:
    """Tokenize a prompt that is already in the model's format; constrain the answer to `schema`.

    Raises:
        InvalidInputError: the prompt is no text or empty, or the schema cannot be enforced.
        MissingDependencyError: a constraint is needed and llguidance is not installed.
    """
    if not isinstance(prompt, str) or not prompt:
        raise InvalidInputError("the prompt is empty; give at least one character")
    ids: list[int] = engine.target.require_tokenizer()(prompt)["input_ids"]
    return ChatCall(ids, {} if schema is None else {"logits_processor": [JsonConstraint(engine.target, schema)]})


def describe_schema(schema: dict[str, Any]) -> str:
    """Return a system message that asks for JSON of a schema."""
    return f"Answer with one JSON object of this schema:\n{json.dumps(schema, ensure_ascii=False)}"


def _with_schema(messages: Sequence[Message], schema: dict[str, Any]) -> list[Message]:
    return [Message("system", describe_schema(schema)), *messages]
