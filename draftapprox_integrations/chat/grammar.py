"""Constrained decoding: restrict generation to JSON of a schema, with the library llguidance."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import InvalidInputError, MissingDependencyError
from ..models.loading import LoadedModel, eos_token_ids
from ..models.locks import ForkSafeLock
from .schemas import close_objects, map_schema

_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Any]] = WeakKeyDictionary()
_lock = ForkSafeLock()
# Those that llguidance enforces.
_FORMATS = {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}


def can_enforce() -> bool:
    """Return whether constrained decoding is available, that is, llguidance is installed."""
    return find_spec("llguidance") is not None


class JsonConstraint(LogitsProcessor):
    """Logits processor that allows only tokens which continue valid JSON of a schema.

    It holds the state of one generation: use it for one row, once.

    Args:
        target: The model that generates.
        schema: A JSON schema. An object that lists its properties allows no others. A format that llguidance does not
            know is an annotation, as in JSON Schema: it is left to whoever reads the JSON.

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
        compact = map_schema(close_objects(schema), _without_unknown_format) | {
            "x-guidance": {"whitespace_flexible": False}
        }  # else a model may write spaces forever
        written = json.dumps(compact)  # the library takes objects too, but no integers beyond 64 bits
        self._matcher = LLMatcher(_tokenizer_of(target), LLMatcher.grammar_from_json_schema(written))
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


def _without_unknown_format(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("format", "date")
    known = isinstance(kind, str) and kind in _FORMATS
    return schema if known else {key: value for key, value in schema.items() if key != "format"}


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
