"""The paper repository's drop-in, as a context manager that changes nothing on the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..models.attention import share_weights
from ..models.loading import load_model
from ..speckv.cache.ragged import decoding_model
from .pipeline import Pipeline


@contextmanager
def patch_model(
    model: PreTrainedModel, draft_model: PreTrainedModel, config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig
) -> Iterator[PreTrainedModel]:
    """A model with the weights of `model` whose `generate` uses SpecKV, SpecPC, or both.

        with patch_model(model, draft_model, SpecKVConfig()) as m:
            m.generate(input_ids=ids, attention_mask=mask, max_new_tokens=32)

    `model` itself is never changed: the patched one is a second set of modules around the same tensors. Both models
    must share a vocabulary. Batches must be padded on the left. What `generate` returns begins with the prompt as it
    was given.

    Raises:
        InvalidInputError: another kind of config, or no input ids.
    """
    if not isinstance(config, SpecKVConfig | SpecKVPCConfig | SpecPCConfig):
        raise InvalidInputError(
            f"config must be a SpecKVConfig, SpecKVPCConfig or SpecPCConfig; got {type(config).__name__}"
        )
    patched = share_weights(model)
    patched.__dict__["generate"] = _Generate(model, draft_model, config)
    yield patched


class _Generate:
    def __init__(self, model: PreTrainedModel, draft: PreTrainedModel, config: Any):
        self._model = model
        self._pipeline = Pipeline(load_model(model), load_model(draft), config)

    def __call__(
        self, inputs: Tensor | None = None, *, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        ids, mask = _ids_and_mask(inputs, input_ids, attention_mask)
        new = _new_tokens(self._model, ids, options)
        ready = self._pipeline.prepare(ids.cpu(), mask.cpu(), new)
        if ready.cache is not None:
            options["past_key_values"] = ready.cache
        if ready.position_ids is not None:
            if options.get("use_cache") is False:  # transformers would take the gaps for several prompts in one row
                raise InvalidInputError("positions='original' needs the cache; leave use_cache out")
            options["position_ids"] = ready.position_ids.to(ids.device)
        if ready.ids.shape[1] != ids.shape[1]:  # max_length speaks of the whole prompt
            options["max_new_tokens"] = new
        out = decoding_model(self._model, ready.cache).generate(  # type: ignore[operator]
            input_ids=ready.ids.to(ids.device), attention_mask=ready.mask.to(ids.device), **options
        )
        sequences = out if isinstance(out, Tensor) else out.sequences
        whole = torch.cat([ids, sequences[:, ready.ids.shape[1] :].to(ids.device)], dim=1)
        if isinstance(out, Tensor):
            return whole
        out.sequences = whole
        return out


def _ids_and_mask(inputs: Tensor | None, input_ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    ids = inputs if input_ids is None else input_ids
    if ids is None or ids.dim() != 2:
        raise InvalidInputError("generate needs input_ids of shape [batch, tokens]")
    return ids, torch.ones_like(ids) if mask is None else mask


def _new_tokens(model: PreTrainedModel, ids: Tensor, options: dict[str, Any]) -> int:
    """How many tokens `model.generate(ids, **options)` writes at most."""
    config = options.get("generation_config") or model.generation_config
    new = options.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    if new is None:
        length = options.get("max_length") or getattr(config, "max_length", None)
        new = 20 if length is None else int(length) - ids.shape[1]
    return max(int(new), 1)
