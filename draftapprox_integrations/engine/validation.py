"""Check what users hand to SpecKV, and bring prompts into one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import InvalidInputError
from ..models.loading import LoadedModel

# Either silently wrong with a cache that is already filled, or ours to set.
_REFUSED = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "num_beams",
    "num_return_sequences",
    "past_key_values",
    "inputs_embeds",
    "input_ids",
    "attention_mask",
    "position_ids",
    "generation_config",
    "return_dict_in_generate",
    "use_cache",
    "stop_strings",
    "do_sample",
    "streamer",
)


def check_options(target: LoadedModel, max_new_tokens: Any, stop: Any, options: dict[str, Any]) -> tuple[str, ...]:
    """The stop strings as a tuple.

    Raises:
        InvalidInputError: names the argument, the value and the limit.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise InvalidInputError(f"max_new_tokens must be an integer >= 0; got {max_new_tokens!r}")
    refused = sorted(set(options) & set(_REFUSED))
    if refused:
        raise InvalidInputError(f"{', '.join(refused)} cannot be used with SpecKV; it sets or replaces them itself")
    stops = as_stops(stop)
    if any(not isinstance(text, str) or not text for text in stops):
        raise InvalidInputError(f"stop must be non-empty strings; got {stop!r}")
    if stops:
        target.require_tokenizer()
    return stops


def as_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; a single one is wrapped."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_ids(target: LoadedModel, rows: list[list[int]]) -> None:
    """Raises:
    InvalidInputError: a prompt is empty, or an id is not of the target's vocabulary.
    """
    for row in rows:
        if not row:
            raise InvalidInputError("a prompt is empty; give at least one token")
        if min(row) < 0 or max(row) >= target.vocabulary:
            raise InvalidInputError(f"token ids of {target.name} must be in [0, {target.vocabulary})")


def as_list(prompts: Any) -> list[Any]:
    """Prompts as a list of texts or of lists of token ids.

    Raises:
        InvalidInputError: neither texts nor ids.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Tensor):
        prompts = prompts.tolist()
    if isinstance(prompts, Sequence) and len(prompts) > 0:
        if all(isinstance(item, int) for item in prompts):
            return [list(prompts)]
        if all(isinstance(item, str) for item in prompts):
            return list(prompts)
        if all(isinstance(item, Sequence | Tensor) and not isinstance(item, str) for item in prompts):
            return [item.tolist() if isinstance(item, Tensor) else list(item) for item in prompts]
    raise InvalidInputError("prompts must be a text, a list of texts, token ids, or a list of token ids; none is empty")
