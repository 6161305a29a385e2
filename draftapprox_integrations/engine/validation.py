"""Checks of the engine's arguments; prompts in one shape."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from ..config import MethodConfig, Positions, SpecKVConfig
from ..errors import InvalidInputError, UnsupportedModelError
from ..models.generation import OUTPUT_SETTINGS, UNUSABLE_SETTINGS, refuse_unusable
from ..models.loading import LoadedModel
from ..speckv.lookahead import same_vocabulary
from ..speckv.text_draft import TextDraft

# Arguments of `model.generate` that the engine sets itself, or that have no effect on what it returns.
_REFUSED_OPTIONS = {
    *OUTPUT_SETTINGS,
    "max_length",
    "past_key_values",
    "inputs",
    "inputs_embeds",
    "input_ids",
    "attention_mask",
    "position_ids",
    "generation_config",
    "stop_strings",
    "do_sample",
    "streamer",
}


def check_options(target: LoadedModel, max_new_tokens: Any, stop: Any, options: dict[str, Any]) -> tuple[str, ...]:
    """Check the options of a call and return its stop strings.

    Raises:
        InvalidInputError: names the argument, the value and the limit.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise InvalidInputError(f"max_new_tokens must be an integer >= 0; got {max_new_tokens!r}")
    refuse_unusable(options)
    refused = sorted(set(options) & (_REFUSED_OPTIONS | set(UNUSABLE_SETTINGS)))
    if refused:
        raise InvalidInputError(f"{', '.join(refused)} cannot be used with SpecKV; it sets or replaces them itself")
    stop_strings = as_stop_strings(stop)
    if any(not isinstance(text, str) or not text for text in stop_strings):
        raise InvalidInputError(f"stop must be non-empty strings; got {stop!r}")
    if stop_strings:
        target.require_tokenizer()
    return stop_strings


def as_stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; a single string counts as one."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_prompt_ids(target: LoadedModel, prompts: list[list[int]]) -> None:
    """Check that no prompt is empty and that every id is in the target's vocabulary.

    Raises:
        InvalidInputError: otherwise.
    """
    for ids in prompts:
        if not ids:
            raise InvalidInputError("a prompt is empty; give at least one token")
        if min(ids) < 0 or max(ids) >= target.vocab_size:
            raise InvalidInputError(f"token ids of {target.name} must be in [0, {target.vocab_size})")


def as_prompts(prompts: Any) -> list[Any]:
    """Prompts as a list of texts or a list of token id lists.

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


def check_single(prompt: Any) -> None:
    """Check that a streaming call has one prompt.

    Raises:
        InvalidInputError: several prompts.
    """
    if len(as_prompts(prompt)) != 1:
        raise InvalidInputError("stream takes one prompt; use generate for several")


def check_config(config: Any) -> None:
    """Check the type of a method's settings.

    Raises:
        InvalidInputError: another type.
    """
    if not isinstance(config, MethodConfig):
        raise InvalidInputError(
            f"config must be a SpecKVConfig, SpecKVPCConfig or SpecPCConfig; got {type(config).__name__}"
        )


def check_positions(positions: Any, config: MethodConfig, target: LoadedModel) -> None:
    """Check the positions of the tokens that SpecPC keeps.

    Raises:
        InvalidInputError: an unknown value, or "original" without SpecPC.
        UnsupportedModelError: "original" with a target that takes no position ids.
    """
    if positions not in get_args(Positions):
        raise InvalidInputError(f"positions must be one of 'renumber', 'original'; got {positions!r}")
    if positions == "renumber":
        return
    if isinstance(config, SpecKVConfig):
        raise InvalidInputError(
            "positions='original' needs SpecPC: use a SpecPCConfig or a SpecKVPCConfig. SpecKV drops KV pairs, not "
            "tokens, so it always keeps the original positions; leave positions out."
        )
    if "position_ids" not in inspect.signature(target.model.forward).parameters:
        raise UnsupportedModelError(
            f"{type(target.model).__name__} cannot be told positions; use positions='renumber' with {target.name}"
        )


def specpc_draft(target: LoadedModel, draft: LoadedModel | TextDraft | None) -> LoadedModel:
    """The draft, if it can select among the target's prompt ids.

    Raises:
        InvalidInputError: there is none, it only writes text, or its vocabulary is another one.
    """
    if isinstance(draft, TextDraft):
        raise InvalidInputError(
            f"SpecPC reads its draft's attention, and {draft.name} only writes text. Use SpecKV, or a draft that is "
            "loaded here."
        )
    if draft is None:
        raise InvalidInputError('SpecPC needs a draft model; "self" takes the target')
    if draft is not target and not same_vocabulary(target, draft):
        raise InvalidInputError(
            f"{draft.name} and {target.name} have different vocabularies, so SpecPC cannot choose among the "
            "prompt's ids. Compress the passages as text before they get here: SpecPC.compress, "
            "SpecPCPostprocessor or SpecPCCompressor take any pair of models."
        )
    return draft
