"""Constrained decoding: restrict generation to JSON of a schema, with the library llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import InvalidInputError, MissingDependencyError
from ..models.loading import LoadedModel, eos_token_ids
from ..models.locks import ForkSafeLock

_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Any]] = WeakKeyDictionary()
_lock = ForkSafeLock()


def can_enforce() -> bool:
    """Return whether constrained decoding is available, that is, llguidance is installed."""
    return find_spec("llguidance") is not None


class JsonConstraint(LogitsProcessor):
    """Logits processor that allows only tokens which continue valid JSON of a schema.

    It holds the state of one generation: use it for one row, once.

    Args:
        target: The model that generates.
        schema: A JSON schema. An object that lists its properties allows no others.

    Raises:
        MissingDependencyError: llguidance is not installed.
        InvalidInputError: the schema has a feature that cannot be enforced, or the tokenizer is not a fast one.
    """

    def __init__(self, target: LoadedModel, schema: dict[str, Any]):
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise MissingDependencyError(
                'constrained JSON needs llguidance: pip install "draftapprox-integrations[structured]"'
            ) from error
        compact = close_objects(schema) | {
            "x-guidance": {"whitespace_flexible": False}
        }  # else a model may write spaces forever
        self._matcher = LLMatcher(_tokenizer_of(target), LLMatcher.grammar_from_json_schema(compact))
        if self._matcher.is_error():
            raise InvalidInputError(f"this JSON schema cannot be enforced: {self._matcher.get_error()}")
        self._prompt_seen = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores of disallowed tokens to -inf.

        Args:
            input_ids: Long [1, tokens].
            scores: Float [1, vocabulary].
        """
        if self._prompt_seen:
            self._matcher.consume_token(int(input_ids[0, -1]))
        self._prompt_seen = True
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool().to(scores.device)
        width = min(len(allowed), scores.shape[-1])  # a model may have more ids than its tokenizer
        blocked = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
        blocked[:width] = ~allowed[:width]
        return scores.masked_fill(blocked, float("-inf"))


def close_objects(schema: Any) -> Any:
    """Return `schema` with `additionalProperties: false` added to objects that list properties and do not set it.

    Otherwise small models keep inventing keys.
    """
    if isinstance(schema, list):
        return [close_objects(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close_objects(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type", "object") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def call_schema(tools: Sequence[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of a call of any of `tools` (OpenAI's format), or of the tool called `name`.

    Raises:
        InvalidInputError: there is no tool of this name.
    """
    functions = [tool.get("function", tool) for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        known = ", ".join(function["name"] for function in functions)
        raise InvalidInputError(f"tool_choice names {name!r}; there are: {known}")
    definitions: dict[str, Any] = {}
    calls = []
    for function in chosen:
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        parameters, found = _hoist_definitions(parameters, function["name"])
        definitions |= found
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | {"$defs": definitions} if definitions else schema


def answer_or_call_schema(answer: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON schema of either an `answer` or a call of one of `tools`."""
    calls = call_schema(tools)
    definitions = calls.pop("$defs", {})
    answer, found = _hoist_definitions(answer, "answer")
    schema: dict[str, Any] = {"anyOf": [answer, *calls.get("anyOf", [calls])]}
    definitions |= found
    return schema | {"$defs": definitions} if definitions else schema


def _hoist_definitions(schema: dict[str, Any], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a schema from its `$defs`, renamed to `owner.name` so that several schemas can share one root."""
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    text = json.dumps([inner, schema.get("$defs", {})]).replace('"#/$defs/', f'"#/$defs/{owner}.')
    moved, definitions = json.loads(text)
    return moved, {f"{owner}.{key}": value for key, value in definitions.items()}


def _tokenizer_of(target: LoadedModel) -> Any:
    import llguidance.hf

    tokenizer = target.require_tokenizer()
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidInputError("constrained JSON needs a fast tokenizer; this one is a slow one")
    size, ends = max(target.vocab_size, len(tokenizer)), eos_token_ids(target.model)
    with _lock:
        made = _tokenizers.setdefault(tokenizer, {})
        key = (size, *ends)
        if key not in made:  # takes about a second
            made[key] = llguidance.hf.from_tokenizer(tokenizer, size, ends or None)
        return made[key]
