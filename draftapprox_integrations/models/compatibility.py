"""Which models can be observed exactly. The others are refused with an error: they must never be silently wrong.

Three nets, one behind the other: the model (`check_model`), each call of its attention (`check_call`), and each pass
(`Reports`). None of them knows a model's name; `tests/integration/models/test_families.py` casts them over every family
of transformers, docs/families.md has the result.
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

# What models pass to their attention function beside queries, keys, values and mask, and what changes nothing:
# the window is in the mask, the positions are in queries and keys.
_HARMLESS = {
    "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache", "logits_to_keep",
    "output_attentions", "output_hidden_states", "output_router_logits",
}  # fmt: skip
_MEANINGS = {
    "softcap": "soft-capped logits",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias on its logits",
    "indices": "a choice of its own among the keys",
    "block_indices": "a choice of its own among the keys",
}


def check_model(model: PreTrainedModel) -> None:
    """What can be told without running the model.

    Raises:
        UnsupportedModelError: its attention has no SDPA form or cannot be observed, it keeps positions or a cache of
            its own.
    """
    name = type(model).__name__
    files = [sys.modules.get(kind.__module__) for kind in {type(module) for module in model.modules()}]
    if not getattr(model, "_supports_sdpa", False) or not any(hasattr(f, "ALL_ATTENTION_FUNCTIONS") for f in files):
        raise UnsupportedModelError(
            f"{name} does not compute attention through transformers' attention interface with SDPA, so what it "
            f"attends to cannot be observed. {_ADVICE}"
        )
    inner = getattr(model, "get_base_model", lambda: model)()  # PEFT wraps the model
    own_positions = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
    if own_positions or "position_ids" not in inspect.signature(type(inner).forward).parameters:
        raise UnsupportedModelError(
            f"{name} counts positions in its own way, so the rows of a padded batch would go wrong. {_ADVICE}"
        )
    counted = isinstance(getattr(model.config.get_text_config(), "num_hidden_layers", None), int)
    if not counted or not model._supports_default_dynamic_cache():  # type: ignore[operator]
        raise UnsupportedModelError(f"{name} keeps its layers' states in a way of its own. {_ADVICE}")
    linear = any(type(layer) is LinearAttentionLayer for layer in DynamicCache(config=model.config).layers)
    if linear and not any(hasattr(f, "apply_mask_to_padding_states") for f in files):
        raise UnsupportedModelError(
            f"{name} does not keep padding out of its recurrent layers, so a padded batch would go wrong. {_ADVICE}"
        )


def check_call(module: torch.nn.Module, query: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> None:
    """What one call of the attention function tells.

    Args:
        module: the attention layer.
        query: [batch, heads, new tokens, head_dim].
        mask: None, or broadcastable to [batch, heads, new tokens, keys], bool or float.
        options: what else the layer passes.

    Raises:
        UnsupportedModelError: the weights are not softmax(query @ key * scaling) under a causal mask.
    """
    name = type(module).__name__
    for option, value in options.items():
        if value is not None and option not in _HARMLESS:
            meaning = _MEANINGS.get(option, f"an option {option!r} that is not known here")
            raise UnsupportedModelError(f"{name} uses {meaning}, which SDPA cannot compute exactly. {_ADVICE}")
    if getattr(module, "layer_idx", None) is None:
        raise UnsupportedModelError(f"{name} does not say which layer it is (no layer_idx). {_ADVICE}")
    if mask is not None and mask.shape[1] > 1:
        raise UnsupportedModelError(f"{name} has a mask of its own for each head. {_ADVICE}")
    if query.shape[2] > 1 and not _is_causal(module, mask, options):
        raise UnsupportedModelError(
            f"{name} lets tokens attend to later ones; only decoders can be used here. If the model can be one, set "
            f"is_decoder=True in its config. {_ADVICE}"
        )


def _is_causal(module: torch.nn.Module, mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    if mask is None:
        causal = options.get("is_causal")
        return bool(getattr(module, "is_causal", True) if causal is None else causal)
    return not bool(_allowed(mask[:, :, -2, -1]).any())  # the last token but one, looking at the last


def _allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > -1.0


def attention_layers(model: PreTrainedModel) -> dict[int, int]:
    """Index of each layer that keeps KV pairs; the window where it keeps no more than that, or 0."""
    layers = enumerate(DynamicCache(config=model.config).layers)
    return {i: getattr(layer, "sliding_window", 0) for i, layer in layers if isinstance(layer, DynamicLayer)}


def check_chunks(model: PreTrainedModel, chunk: int, tokens: int) -> None:
    """Whether a prompt of `tokens` can be read in pieces of `chunk`.

    Raises:
        UnsupportedModelError: recurrent layers, most of which go wrong when a piece has padding or a single token; or
            positions that count differently from some length on.
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
    """Whether rows of different length can share a batch.

    Args:
        mask: [batch, tokens], 0 at padding.

    Raises:
        UnsupportedModelError: attention changes with the place in the padded row (Llama 4's temperature does).
    """
    scales = [int(scale) for module in model.modules() if (scale := getattr(module, "floor_scale", 0))]
    if scales and mask.shape[1] >= min(scales) and not bool(mask.all()):
        raise UnsupportedModelError(
            f"{type(model).__name__} counts padding as positions from token {min(scales)} on, so prompts of different "
            "length cannot share a batch there. Give one prompt at a time."
        )


def position_limit(model: PreTrainedModel, tokens: int) -> int | None:
    """How long a sequence of `tokens` may get before the model treats those differently; None for no limit.

    That is its window, and before it where scaled rotary embeddings (longrope) change for the whole sequence.
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


class Reports:
    """Which layers have reported in one forward pass.

    Args:
        model: For the messages.
        layers: From `attention_layers`.
        new: Tokens that are fed.
        total: Tokens of the sequence up to the last of these.
        windows: A cache may have let go of what is out of a sliding layer's window.
    """

    def __init__(self, model: PreTrainedModel, layers: dict[int, int], new: int, total: int, *, windows: bool = False):
        self._name, self._layers, self._new, self._total = type(model).__name__, layers, new, total
        self._windows = windows
        self._seen: set[int] = set()
        self._key: weakref.ref[Tensor] | None = None

    def first(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
        """False if the layer has reported this attention before (some call it once per part of their values).

        Raises:
            UnsupportedModelError: a layer runs several times, or not for every token, or sees more than its cache
                keeps.
        """
        if layer in self._seen:
            if self._key is not None and self._key() is key:
                return False
            raise UnsupportedModelError(f"{self._name} runs its layer {layer} several times per token. {_ADVICE}")
        self._seen.add(layer)
        self._key = weakref.ref(key)
        queries, keys = query.shape[2], key.shape[2]
        # A layer that keeps no pairs attends to those of another one, which may be a sliding layer.
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
        """Raises:
        UnsupportedModelError: a layer that keeps KV pairs did not report, or none from layer `start` on.
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
