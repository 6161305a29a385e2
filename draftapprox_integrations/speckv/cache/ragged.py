"""Ragged KV cache: each head keeps its own number of pairs, stored without padding.

A model's own attention needs equally many keys for every head. So decoding uses the model's attention view:
`RaggedLayer.update` returns the layer itself instead of keys, and the view's attention function calls `attend` on it.
There is no global state: any number of threads may decode with caches of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...models.attention import attention_view
from .evicted import KeptPromptLayer


class RaggedLayer(KeptPromptLayer):
    """Cache layer with ragged kept pairs of the prompt and dense pairs of later tokens.

    Args:
        keys, values: [batch, kv_heads, at least tokens, head_dim].
        keep: bool [batch, kv_heads, tokens], True at kept pairs.

    Attributes:
        kept_keys, kept_values: [pairs, head_dim], the kept pairs of all rows and heads, concatenated.
        lengths: Number of kept pairs of each head of each row; batch * kv_heads numbers.
        keys, values: [batch, kv_heads, later tokens, head_dim].
    """

    def __init__(self, keys: Tensor, values: Tensor, keep: Tensor):
        super().__init__()
        self._prompt_length = keep.shape[-1]
        keep = keep.to(keys.device)
        self.kept_keys, self.kept_values = (
            keys[:, :, : self._prompt_length][keep],
            values[:, :, : self._prompt_length][keep],
        )
        self.lengths: list[int] = keep.sum(dim=-1).flatten().tolist()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys: Tensor = keys.new_empty(*keys.shape[:2], 0, keys.shape[-1])
        self.values: Tensor = values.new_empty(*values.shape[:2], 0, values.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append new tokens and return the layer itself in place of keys and of values."""
        super().update(key_states, value_states)
        return self, self

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Compute the newest tokens' attention to all kept pairs, and to later tokens as `mask` allows.

        Args:
            query: [batch, heads, new tokens, head_dim].
            mask: [batch, 1, new tokens, later tokens], or None (causal, nothing padded).
            scaling: Factor of query @ key.

        Returns:
            [batch, new tokens, heads, head_dim].
        """
        lengths = [kept + self.keys.shape[2] for kept in self.lengths]
        keys = _concatenate(self.kept_keys, self.lengths, self.keys)
        values = _concatenate(self.kept_values, self.lengths, self.values)
        kernel = varlen_kernel(query, mask)
        if kernel is not None:
            return attend_varlen(kernel, query, keys, values, lengths, scaling)
        return attend_per_head(query, keys, values, lengths, mask, scaling)

    def get_seq_length(self) -> int:
        """Number of tokens in the sequence so far, evicted ones included."""
        return self.keys.shape[2] + self._prompt_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(width, offset) of the attention mask: later tokens only, as every query may attend to all kept pairs."""
        return self.keys.shape[2] + query_length, self._prompt_length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        batch, heads = self.keys.shape[:2]
        kept = [i for row in torch.arange(batch)[indices.cpu()].tolist() for i in range(row * heads, (row + 1) * heads)]
        for name in ("kept_keys", "kept_values"):
            pieces = getattr(self, name).split(self.lengths)
            setattr(self, name, torch.cat([pieces[i] for i in kept]))
        self.lengths = [self.lengths[i] for i in kept]
        self.keys, self.values = self.keys[indices], self.values[indices]


def decoding_model(model: PreTrainedModel, cache: DynamicCache | None) -> PreTrainedModel:
    """Return the model to continue from `cache` with: `model` itself, or its attention view for ragged layers."""
    if cache is None or not any(isinstance(layer, RaggedLayer) for layer in cache.layers):
        return model
    view = attention_view(model)
    view.generation_config = model.generation_config  # the view's copy may be outdated
    return view


def _concatenate(kept: Tensor, lengths: list[int], later: Tensor) -> Tensor:
    """Concatenate each head's kept pairs with its later tokens, for all rows: [pairs, head_dim]."""
    pieces = zip(kept.split(lengths), later.flatten(0, 1), strict=True)
    return torch.cat([part for pair in pieces for part in pair])


def attend_per_head(
    query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], mask: Tensor | None, scaling: float
) -> Tensor:
    """Compute SDPA one KV head of one row at a time.

    Args:
        query: [batch, heads, new tokens, head_dim].
        keys, values: [sum of lengths, head_dim].
        lengths: Number of pairs of each KV head of each row; the new tokens' pairs come last.
        mask: [batch, 1, new tokens, any], for the last pairs of each head; all queries may attend to earlier ones.
            None: causal.
        scaling: Factor of query @ key.

    Returns:
        [batch, new tokens, heads, head_dim].
    """
    batch, heads, tokens, _ = query.shape
    kv_heads = len(lengths) // batch
    if mask is None and tokens > 1:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().expand(batch, 1, -1, -1)
    rows = query.unflatten(1, (kv_heads, -1)).flatten(0, 1)  # [batch * kv_heads, group, tokens, head_dim]
    if tokens == 1:  # treat the group's queries as tokens, so that their shared pairs are read once
        rows = rows.transpose(1, 2)
    outputs = []
    for i, (key, value) in enumerate(zip(keys.split(lengths), values.split(lengths), strict=True)):
        allowed = None
        if mask is not None:
            ones = float(mask.dtype == torch.bool)
            allowed = F.pad(mask[i // kv_heads, 0], (lengths[i] - mask.shape[-1], 0), value=ones)
        shape = (1, rows.shape[1], -1, -1)
        outputs.append(
            F.scaled_dot_product_attention(
                rows[i : i + 1], key.expand(shape), value.expand(shape), attn_mask=allowed, scale=scaling
            )
        )
    out = torch.cat(outputs)
    if tokens == 1:
        out = out.transpose(1, 2)
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2)


def attend_varlen(
    kernel: Callable[..., Any], query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], scaling: float
) -> Tensor:
    """Compute all heads in one call of flash-attn's `flash_attn_varlen_func`, each as a sequence with one KV head.

    Arguments as for `attend_per_head`, without a mask: causal, the new tokens last.
    """
    batch, _, tokens, _ = query.shape
    rows = query.unflatten(1, (len(lengths) // batch, -1)).flatten(0, 1)  # [batch * kv_heads, group, tokens, head_dim]
    ends = torch.tensor([0, *lengths], device=query.device).cumsum(0, dtype=torch.int32)
    starts = torch.arange(0, len(rows) * tokens + 1, tokens, device=query.device, dtype=torch.int32)
    out: Tensor = kernel(
        rows.transpose(1, 2).flatten(0, 1),
        keys[:, None],
        values[:, None],
        starts,
        ends,
        tokens,
        max(lengths),
        softmax_scale=scaling,
        causal=True,
    )
    # [batch, kv_heads, tokens, group, head_dim] with the tokens before the heads
    return out.view(batch, -1, tokens, *out.shape[1:]).transpose(1, 2).flatten(2, 3)


def varlen_kernel(query: Tensor, mask: Tensor | None) -> Callable[..., Any] | None:
    """Return flash-attn's kernel if it is installed and supports this input, else None."""
    if mask is not None or not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    return _flash_attn()


@cache
def _flash_attn() -> Callable[..., Any] | None:
    try:
        kernel: Callable[..., Any] = import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):  # flash-attn-4 alone has another module in a package of the same name
        return None
    return kernel
