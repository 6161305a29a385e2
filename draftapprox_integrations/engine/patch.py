"""`patch_model`: the drop-in of the paper's repository, for code that calls `model.generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ..config import MethodConfig, Positions
from ..errors import InvalidInputError
from ..models.attention import share_weights
from ..models.generation import (
    count_new_tokens,
    max_new_tokens,
    refuse_unusable,
    take_lengths,
    usable_config,
    with_generation_config,
    without_unusable,
)
from ..models.loading import load_model
from ..speckv.cache.ragged import decoding_model
from .pipeline import Pipeline
from .validation import check_config


def patch_model(
    model: PreTrainedModel, draft_model: PreTrainedModel, config: MethodConfig, *, positions: Positions = "renumber"
) -> PreTrainedModel:
    """Return a model with the weights of `model` whose `generate` uses SpecKV, SpecPC, or both.

        model = patch_model(model, draft_model, SpecKVConfig())
        model.generate(input_ids, max_new_tokens=32)

    The given `model` is not changed: the patched one is a second set of modules around the same tensors, with a config
    and a generation config of its own. Both models must share a vocabulary. Batches must be padded on the left. The
    sequences that `generate` returns begin with the whole prompt; an output dict also has `input_ids` and `output_ids`
    (the new tokens), as in the paper's repository.

    What a shortened prompt or cache cannot honour (beams, several sequences, an assistant model, another cache, ...) is
    refused where the caller of `generate` asks for it, and left out where the model's own generation config does.

    Args:
        model: The target.
        draft_model: The draft.
        config: `SpecKVConfig`, `SpecPCConfig`, or `SpecKVPCConfig` for the cascade.
        positions: As for `SpecKV`.

    Raises:
        InvalidInputError: another type of config, or positions that do not fit it.
        UnsupportedModelError: the attention of `model` cannot be observed.
    """
    check_config(config)
    patched = share_weights(model)
    pipeline = Pipeline(load_model(patched), load_model(draft_model), config, positions=positions)
    patched.__dict__["generate"] = _PatchedGenerate(patched, pipeline)
    return patched


class _PatchedGenerate:
    """The `generate` of a patched model."""

    def __init__(self, model: PreTrainedModel, pipeline: Pipeline):
        self._model, self._pipeline = model, pipeline

    def __call__(
        self,
        inputs: Tensor | Mapping[str, Tensor] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Prefill with the pipeline, then decode with transformers' own `generate`.

        Args:
            inputs, input_ids: LongTensor [batch, tokens]; `inputs` may be what a tokenizer returns.
            attention_mask: [batch, tokens], 0 at padding; None if nothing is padded.
            **options: Further arguments of `model.generate`.

        Raises:
            InvalidInputError: no `input_ids`, or an option that cannot be honoured, which the message names.
        """
        ids, mask = _ids_and_mask(inputs, input_ids, attention_mask)
        config, options = _usable(self._model, options)
        batch = self._pipeline.prepare(ids.cpu(), mask.cpu(), max_new_tokens(config, ids.shape[1]))
        if batch.cache is not None:
            options["past_key_values"] = batch.cache
        if batch.position_ids is not None:
            options["position_ids"] = batch.position_ids.to(ids.device)
        if batch.input_ids.shape[1] != ids.shape[1]:
            count_new_tokens(config, ids.shape[1])
        model = with_generation_config(decoding_model(self._model, batch.cache), config)
        output = type(model).generate(  # type: ignore[attr-defined]
            model,
            input_ids=batch.input_ids.to(ids.device),
            attention_mask=batch.attention_mask.to(ids.device),
            **options,
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        new_ids = sequences[:, batch.input_ids.shape[1] :].to(ids.device)
        sequences = torch.cat([ids, new_ids], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences, output.input_ids, output.output_ids = sequences, ids, new_ids
        return output


def _ids_and_mask(
    inputs: Tensor | Mapping[str, Tensor] | None, input_ids: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if inputs is not None and not isinstance(inputs, Tensor):
        mask = inputs.get("attention_mask", mask)
        inputs = inputs["input_ids"]
    ids = inputs if input_ids is None else input_ids
    if ids is None or ids.dim() != 2:
        raise InvalidInputError("generate needs input_ids of shape [batch, tokens]")
    return ids, torch.ones_like(ids) if mask is None else mask


def _usable(model: PreTrainedModel, options: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation config of a call, lengths included, and the arguments that remain for `model.generate`.

    Raises:
        InvalidInputError: the caller asked for what a shortened prompt or cache cannot honour.
    """
    given = options.pop("generation_config", None)
    for settings in (options, vars(given) if given is not None else {}):
        refuse_unusable(settings)
        if settings.get("stop_strings") is not None and options.get("tokenizer") is None:
            raise InvalidInputError("stop_strings needs tokenizer=..., the tokenizer that reads them")
    # Stop strings of the model's own config are followed where there is a tokenizer for them.
    config = usable_config(model, given, () if options.get("tokenizer") is not None else ("stop_strings",))
    options = without_unusable(options)
    take_lengths(config, options)
    return config, options
