"""Make a model write JSON of a given schema, and nothing else: grammars of the library llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import InvalidInputError, MissingDependencyError
from ..models.loading import LoadedModel, end_ids

_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Any]] = WeakKeyDictionary()
_lock = threading.Lock()


def can_enforce() -> bool:
    """Whether llguidance is installed."""
    return find_spec("llguidance") is not None


class JsonOnly(LogitsProcessor):
    """Lets through only tokens that keep the text a beginning of JSON of `schema`. For one row, used once.

    Args:
        target: The model that writes.
        schema: A JSON schema; an object that lists its properties takes no others.

    Raises:
        MissingDependencyError: llguidance is not installed.
        InvalidInputError: the schema uses what cannot be enforced, or the tokenizer is not a fast one.
    """

    def __init__(self, target: LoadedModel, schema: dict[str, Any]):
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise MissingDependencyError(
                'output of a given shape needs llguidance: pip install "draftapprox-integrations[structured]"'
            ) from error
        compact = close_objects(schema) | {"x-guidance": {"whitespace_flexible": False}}  # no room for endless spaces
        self._matcher = LLMatcher(_tokenizer_of(target), LLMatcher.grammar_from_json_schema(compact))
        if self._matcher.is_error():
            raise InvalidInputError(f"this JSON schema cannot be enforced: {self._matcher.get_error()}")
        self._read = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Float [1, vocabulary], -inf where the grammar ends."""
        if self._read >= 0:
            self._matcher.consume_token(int(input_ids[0, -1]))
        self._read = input_ids.shape[1]
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool().to(scores.device)
        width = min(len(allowed), scores.shape[-1])  # a model may have more ids than its tokenizer
        blocked = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
        blocked[:width] = ~allowed[:width]
        return scores.masked_fill(blocked, float("-inf"))


def close_objects(schema: Any) -> Any:
    """`schema` with `additionalProperties: false` wherever properties are listed and nothing is said about others.

    Small models go on inventing keys otherwise.
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
    """The schema of a call of one of `tools` (OpenAI's layout), or of the one called `name`.

    Raises:
        InvalidInputError: there is no such tool.
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
        parameters, found = _hoist(parameters, function["name"])
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


def _hoist(parameters: dict[str, Any], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Definitions move to the root of the new schema, under names of their own."""
    inner = {key: value for key, value in parameters.items() if key != "$defs"}
    text = json.dumps([inner, parameters.get("$defs", {})]).replace('"#/$defs/', f'"#/$defs/{owner}.')
    moved, definitions = json.loads(text)
    return moved, {f"{owner}.{key}": value for key, value in definitions.items()}


def _tokenizer_of(target: LoadedModel) -> Any:
    import llguidance.hf

    tokenizer = target.require_tokenizer()
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidInputError("output of a given shape needs a fast tokenizer; this one is a slow one")
    size, ends = max(target.vocabulary, len(tokenizer)), end_ids(target.model)
    with _lock:
        made = _tokenizers.setdefault(tokenizer, {})
        key = (size, *ends)
        if key not in made:  # takes about a second
            made[key] = llguidance.hf.from_tokenizer(tokenizer, size, ends or None)
        return made[key]
