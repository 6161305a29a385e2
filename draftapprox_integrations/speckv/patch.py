"""The paper repository's drop-in, as a context manager that changes nothing on the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention import share_weights
from ..config import SpecKVConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..specpc.compressor import SpecPC
from .checks import pad_left
from .generator import SpecKV


@contextmanager
def patch_model(
    model: PreTrainedModel, draft_model: PreTrainedModel, config: SpecKVConfig | SpecPCConfig
) -> Iterator[PreTrainedModel]:
    """A model with the weights of `model` whose `generate` uses SpecKV or SpecPC.

        with patch_model(model, draft_model, SpecKVConfig()) as m:
            m.generate(input_ids=ids, attention_mask=mask, max_new_tokens=32)

    `model` itself is never changed: the patched one is a second set of modules around the same tensors. Both models
    must share a vocabulary. Batches must be padded on the left.

    Raises:
        InvalidInputError: another kind of config, or no input ids.
    """
    if isinstance(config, SpecKVConfig):
        method: _SpecKVGenerate | _SpecPCGenerate = _SpecKVGenerate(model, draft_model, config)
    elif isinstance(config, SpecPCConfig):
        method = _SpecPCGenerate(model, draft_model, config)
    else:
        raise InvalidInputError(f"config must be a SpecKVConfig or a SpecPCConfig; got {type(config).__name__}")
    patched = share_weights(model)
    patched.__dict__["generate"] = method
    yield patched


class _SpecKVGenerate:
    def __init__(self, model: PreTrainedModel, draft: PreTrainedModel, config: SpecKVConfig):
        self._model = model
        self._engine = SpecKV(model, draft, config)

    def __call__(
        self, inputs: Tensor | None = None, *, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        ids, mask = _ids_and_mask(inputs, input_ids, attention_mask)
        cache, _, _ = self._engine.compress(ids.cpu(), mask.cpu(), _new_tokens(self._model, ids, options))
        if cache is not None:
            options["past_key_values"] = cache
        return self._model.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[operator]


class _SpecPCGenerate:
    def __init__(self, model: PreTrainedModel, draft: PreTrainedModel, config: SpecPCConfig):
        self._model = model
        self._engine = SpecPC(draft, config)

    def __call__(
        self, inputs: Tensor | None = None, *, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        ids, mask = _ids_and_mask(inputs, input_ids, attention_mask)
        kept = self._engine.select(ids, mask).indices
        short, short_mask = pad_left([ids[row, keep.to(ids.device)].tolist() for row, keep in enumerate(kept)])
        options |= {"max_new_tokens": _new_tokens(self._model, ids, options)}
        out = self._model.generate(  # type: ignore[operator]
            input_ids=short.to(ids.device), attention_mask=short_mask.to(ids.device), **options
        )
        # What comes back begins with the prompt as it was given, like any `generate`.
        sequences = out if isinstance(out, Tensor) else out.sequences
        whole = torch.cat([ids, sequences[:, short.shape[1] :].to(ids.device)], dim=1)
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
