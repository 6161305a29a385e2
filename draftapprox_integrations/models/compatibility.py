"""Checks that a model can be observed exactly. All other models are refused: results are never silently wrong.

There are three levels: the model (`check_model`), each call of its attention (`check_call`), and each forward pass
(`ObservedLayers`). No check depends on a model's name. `tests/integration/models/test_families.py` runs them on every
model family of transformers; docs/families.md shows the result.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from ..errors import UnsupportedModelError

_ADVICE = (
    "Choose another draft model, for example Qwen2.5-0.5B-Instruct; as a target it can be used behind SpecPC, which "
    "needs no access to it. docs/families.md lists what works."
)

# Options of an attention call that do not change its result: the window is part of the mask, the positions are part of
# queries and keys.
_IGNORED_OPTIONS = {
    "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache", "logits_to_keep",
    "output_attentions", "output_hidden_states", "output_router_logits",
}  # fmt: skip
_OPTION_MEANINGS = {
    "softcap": "soft-capped logits",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias on its logits",
    "indices": "a learned selection of keys",
    "block_indices": "a learned selection of keys",
}


def check_model(model: PreTrainedModel) -> None:
    """Check a model without running it.

    Raises:
        UnsupportedModelError: its attention has no SDPA implementation or cannot be observed, or it manages positions
            or a cache in its own way.
    """
    name = type(model).__name__
    files = [sys.modules.get(kind.__module__) for kind in {type(module) for module in model.modules()}]
    if not getattr(model, "_supports_sdpa", False) or not any(hasattr(f, "ALL_ATTENTION_FUNCTIONS") for f in files):
        raise UnsupportedModelError(
            f"{name} does not compute attention through transformers' attention interface with SDPA, so what it "
            f"attends to cannot be observed. {_ADVICE}"
        )
    base_model = getattr(model, "get_base_model", lambda: model)()  # unwrap PEFT
    own_positions = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
    if own_positions or "position_ids" not in inspect.signature(type(base_model).forward).parameters:
        raise UnsupportedModelError(
            f"{name} computes positions itself, so the rows of a padded batch would go wrong. {_ADVICE}"
        )
    counted = isinstance(getattr(model.config.get_text_config(), "num_hidden_layers", None), int)
    if not counted or not model._supports_default_dynamic_cache():  # type: ignore[operator]
        raise UnsupportedModelError(f"{name} does not store its layers' states in transformers' cache. {_ADVICE}")
    linear = any(type(layer) is LinearAttentionLayer for layer in DynamicCache(config=model.config).layers)
    if linear and not any(hasattr(f, "apply_mask_to_padding_states") for f in files):
        raise UnsupportedModelError(
            f"{name} does not keep padding out of its recurrent layers, so a padded batch would go wrong. {_ADVICE}"
        )


def check_call(module: torch.nn.Module, query: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> None:
    """Check one call of the attention function.

    Args:
        module: The attention layer.
        query: [batch, heads, new tokens, head_dim].
        mask: None, or broadcastable to [batch, heads, new tokens, keys], bool or float.
        options: Further arguments that the layer passes.

    Raises:
        UnsupportedModelError: the weights are not softmax(query @ key * scaling) under a causal mask.
    """
    name = type(module).__name__
    for option, value in options.items():
        if value is not None and option not in _IGNORED_OPTIONS:
            meaning = _OPTION_MEANINGS.get(option, f"an option {option!r} that is not known here")
            raise UnsupportedModelError(f"{name} uses {meaning}, which SDPA cannot compute exactly. {_ADVICE}")
    if getattr(module, "layer_idx", None) is None:
        raise UnsupportedModelError(f"{name} has no layer index (layer_idx). {_ADVICE}")
    if mask is not None and mask.shape[1] > 1:
        raise UnsupportedModelError(f"{name} has a separate mask for each head. {_ADVICE}")
    if query.shape[2] > 1 and not _is_causal(module, mask, options):
        raise UnsupportedModelError(
            f"{name} lets tokens attend to later ones; only decoders are supported. If the model can be one, set "
            f"is_decoder=True in its config. {_ADVICE}"
        )


def _is_causal(module: torch.nn.Module, mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    if mask is None:
        causal = options.get("is_causal")
        return bool(getattr(module, "is_causal", True) if causal is None else causal)
    return not bool(_allowed(mask[:, :, -2, -1]).any())  # may the second to last token attend to the last one?


def _allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > -1.0


def attention_layers(model: PreTrainedModel) -> dict[int, int]:
    """Map each layer that caches KV pairs to its sliding window in tokens, or to 0 if it caches all pairs."""
    layers = enumerate(DynamicCache(config=model.config).layers)
    return {i: getattr(layer, "sliding_window", 0) for i, layer in layers if isinstance(layer, DynamicLayer)}


def check_chunks(model: PreTrainedModel, chunk: int, tokens: int) -> None:
    """Check that a prompt of `tokens` tokens can be prefilled in chunks of `chunk`.

    Raises:
        UnsupportedModelError: the model has recurrent layers, most of which fail on chunks with padding or of one
            token; or positions that change with the length of the sequence.
    """
    if (limit := position_limit(model, chunk)) is not None and limit < tokens:
        raise UnsupportedModelError(
            f"{type(model).__name__} treats positions differently once there are more than {limit}, so it cannot read "
            "this prompt in chunks: leave prefill_chunk_size at None."
        )
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=model.config).layers):
        raise UnsupportedModelError(
            f"{type(model).__name__} has recurrent or convolutional layers, which cannot read a prompt in chunks: "
            "leave prefill_chunk_size at None, or choose another draft model, for example Qwen2.5-0.5B-Instruct."
        )


def check_padding(model: PreTrainedModel, mask: Tensor) -> None:
    """Check that rows of different length can share a batch.

    Args:
        mask: [batch, tokens], 0 at padding.

    Raises:
        UnsupportedModelError: attention depends on the index in the padded row, as Llama 4's temperature does.
    """
    scales = [int(scale) for module in model.modules() if (scale := getattr(module, "floor_scale", 0))]
    if scales and mask.shape[1] >= min(scales) and not bool(mask.all()):
        raise UnsupportedModelError(
            f"{type(model).__name__} counts padding as positions from token {min(scales)} on, so prompts of different "
            "length cannot share a batch there. Give one prompt at a time."
        )


def position_limit(model: PreTrainedModel, tokens: int) -> int | None:
    """Return the length up to which a sequence of `tokens` tokens may grow without changing them; None for no limit.

    The limit is the context window, or a lower length at which scaled rotary embeddings (longrope) change for the whole
    sequence.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [
        part.get("original_max_position_embeddings")
        for part in (rope, *rope.values())
        if isinstance(part, dict) and part.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit and limit >= tokens), default=None)


class ObservedLayers:
    """Records the attention layers observed in one forward pass, and checks that none is missing or unexpected.

    Args:
        model: The model, for error messages.
        layers: From `attention_layers`.
        new: Number of tokens fed in this pass.
        total: Number of tokens in the sequence up to the last of these.
        windows: Whether a cache may have dropped tokens outside a sliding layer's window.
    """

    def __init__(self, model: PreTrainedModel, layers: dict[int, int], new: int, total: int, *, windows: bool = False):
        self._name, self._layers, self._new, self._total = type(model).__name__, layers, new, total
        self._windows = windows
        self._seen: set[int] = set()
        self._key: weakref.ref[Tensor] | None = None

    def record(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
        """Record a layer; return False if this attention was recorded before (some layers call it per part of a value).

        Raises:
            UnsupportedModelError: a layer runs several times, or not for every token, or attends to more than its cache
                holds.
        """
        if layer in self._seen:
            if self._key is not None and self._key() is key:
                return False
            raise UnsupportedModelError(f"{self._name} runs its layer {layer} several times per token. {_ADVICE}")
        self._seen.add(layer)
        self._key = weakref.ref(key)
        queries, keys = query.shape[2], key.shape[2]
        # A layer without pairs of its own attends to those of another layer, which may be a sliding one.
        window = self._layers.get(layer)
        may_be_fewer = self._windows and window != 0
        if queries != self._new or keys > self._total or (keys < self._total and not may_be_fewer):
            raise UnsupportedModelError(
                f"layer {layer} of {self._name} runs {queries} queries on {keys} keys where {self._new} and "
                f"{self._total} were expected. {_ADVICE}"
            )
        if window and keys > window and (mask is None or int(_allowed(mask[:, :, -1]).sum(-1).max()) > window):
            raise UnsupportedModelError(
                f"layer {layer} of {self._name} attends beyond the window of {window} tokens that its cache keeps. "
                f"{_ADVICE}"
            )
        return True

    def check_complete(self, start: int = 0) -> None:
        """Check that every layer with KV pairs was recorded.

        Raises:
            UnsupportedModelError: one is missing, or there is none from layer `start` on.
        """
        if missing := sorted(set(self._layers) - self._seen):
            raise UnsupportedModelError(
                f"the attention of layers {missing} of {self._name} could not be observed. {_ADVICE}"
            )
        if max(self._seen, default=-1) < start:
            raise UnsupportedModelError(
                f"{self._name} has no attention from layer {start} on. Set a lower starting_layer_index, or choose "
                "another draft model."
            )
