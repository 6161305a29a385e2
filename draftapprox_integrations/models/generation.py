"""Settings of `model.generate` that a shortened prompt or cache cannot honour, and a model that is free of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Cache, GenerationConfig, PreTrainedModel

from ..errors import InvalidInputError

# Each of these selects another way to decode than one token of one sequence after the other, or another cache than the
# one that holds the kept pairs. With each the values, besides None, that change nothing.
_UNUSABLE: dict[str, tuple[Any, ...]] = {
    # several sequences, or a search over them
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "num_return_sequences": (1,),
    "constraints": (),
    "force_words_ids": (),
    # a search that compares tokens or layers
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    # several tokens at once, taken back where they are wrong
    "assistant_model": (),
    "assistant_tokenizer": (),
    "assistant_early_exit": (),
    "prompt_lookup_num_tokens": (),
    "use_mtp": (False,),
    "speculation_type": (),
    "is_assistant": (False,),
    # another cache, another prompt, another loop
    "use_cache": (True,),
    "cache_implementation": ("dynamic",),
    "cache_config": (),
    "token_healing": (False,),
    "custom_generate": (),
}
# What the caller of `model.generate` alone can handle: other types of output, and stop strings for a tokenizer of his.
OUTPUT_SETTINGS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
UNUSABLE_SETTINGS = tuple(_UNUSABLE)


def refuse_unusable(settings: Mapping[str, Any]) -> None:
    """Check a caller's arguments of `model.generate`, or the fields of the generation config that he gave.

    Raises:
        InvalidInputError: names those that cannot be honoured and whose value would change something.
    """
    names = [
        name
        for name, neutral in sorted(_UNUSABLE.items())
        if (value := settings.get(name)) is not None and not _is_one_of(value, neutral)
    ]
    cache = settings.get("past_key_values")
    if cache is not None and not (isinstance(cache, Cache) and cache.get_seq_length() == 0):
        names.append("past_key_values that hold tokens")
    if names:
        raise InvalidInputError(
            f"{', '.join(names)} cannot be used with a shortened prompt or cache: each prompt gets one answer, one "
            "token after the other, from a cache that is filled here. Leave them out, or use the model as it is."
        )


def without_unusable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that pass `refuse_unusable`, without those that change nothing; transformers refuses some None."""
    unusable = {*_UNUSABLE, "past_key_values"}
    return {name: value for name, value in settings.items() if name not in unusable}


def usable_config(
    model: PreTrainedModel, given: GenerationConfig | None = None, without: Sequence[str] = ()
) -> GenerationConfig:
    """The generation config that `model.generate(generation_config=given)` follows, without what cannot be honoured.

    Args:
        model: Its own config has the settings that `given` leaves out.
        given: The caller's, which passed `refuse_unusable`.
        without: Further settings of the model's own config to leave out.
    """
    config = GenerationConfig() if model.generation_config is None else copy.deepcopy(model.generation_config)
    for name in (*_UNUSABLE, *without):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    for name, value in vars(given).items() if given is not None else ():
        if value is not None and name not in _UNUSABLE and not name.startswith("_"):
            setattr(config, name, copy.deepcopy(value))
    return config


def with_generation_config(model: PreTrainedModel, config: GenerationConfig) -> PreTrainedModel:
    """The same modules and tensors with another generation config; `model` is not changed.

    A config that is given to `generate` is not enough: transformers fills its None fields from the model's own.
    """
    other = copy.copy(model)
    other.generation_config = config
    return other


def take_lengths(config: GenerationConfig, options: dict[str, Any]) -> None:
    """Move the arguments of `generate` that limit the answer's length from `options` to `config`."""
    for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens"):
        if name in options:
            setattr(config, name, options.pop(name))


def max_new_tokens(config: GenerationConfig, prompt_tokens: int) -> int:
    """Most tokens that `generate` writes after a prompt of `prompt_tokens` tokens, >= 1."""
    tokens = config.max_new_tokens
    if tokens is None:
        tokens = 20 if config.max_length is None else config.max_length - prompt_tokens
    return max(int(tokens), 1)


def count_new_tokens(config: GenerationConfig, prompt_tokens: int) -> None:
    """Replace the lengths that count the prompt, for a prompt that was shortened.

    Args:
        config: Changed: `max_length` and `min_length` give way to `max_new_tokens` and `min_new_tokens`.
        prompt_tokens: Width of the whole prompts' batch, in tokens, which transformers' lengths count.
    """
    config.max_new_tokens = max_new_tokens(config, prompt_tokens)
    if config.min_new_tokens is None and config.min_length is not None:
        config.min_new_tokens = max(config.min_length - prompt_tokens, 0)
    config.max_length = config.min_length = None


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    return isinstance(value, bool | int | float | str) and any(value == other for other in neutral)
