"""KV pairs of which every head keeps its own number: held without padding, attended to exactly.

A model's own attention wants dense keys, as many for every head. So decoding goes on with the model's attention view:
what `RaggedLayer.update` returns in place of keys is the layer itself, which the view's attention function lets attend.
Nothing is global: any number of threads may decode with caches of their own.
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
    """The kept pairs of a prompt, and all pairs of the tokens that come later.

    Args:
        keys, values: [batch, kv_heads, at least tokens, head_dim].
        keep: bool [batch, kv_heads, tokens], True at what is kept.

    Attributes:
        kept_keys, kept_values: [pairs, head_dim], the kept pairs of all rows and heads one after the other.
        lengths: How many of them each head of each row has; batch * kv_heads numbers.
        keys, values: [batch, kv_heads, later tokens, head_dim].
    """

    def __init__(self, keys: Tensor, values: Tensor, keep: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = keep.shape[-1]
        keep = keep.to(keys.device)
        self.kept_keys, self.kept_values = keys[:, :, : self._before][keep], values[:, :, : self._before][keep]
        self.lengths: list[int] = keep.sum(dim=-1).flatten().tolist()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys: Tensor = keys.new_empty(*keys.shape[:2], 0, keys.shape[-1])
        self.values: Tensor = values.new_empty(*values.shape[:2], 0, values.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add new tokens; what is to attend to all pairs, twice."""
        super().update(key_states, value_states)
        return self, self

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attention of the newest tokens to the kept pairs, all of them, and to later tokens as `mask` allows.

        Args:
            query: [batch, heads, new tokens, head_dim].
            mask: [batch, 1, new tokens, later tokens], or None (causal, nothing padded).
            scaling: factor of query @ key.

        Returns:
            [batch, new tokens, heads, head_dim].
        """
        lengths = [kept + self.keys.shape[2] for kept in self.lengths]
        keys = _joined(self.kept_keys, self.lengths, self.keys)
        values = _joined(self.kept_values, self.lengths, self.values)
        kernel = varlen_kernel(query, mask)
        if kernel is not None:
            return attend_varlen(kernel, query, keys, values, lengths, scaling)
        return attend_per_head(query, keys, values, lengths, mask, scaling)

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones included."""
        return self.keys.shape[2] + self._before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What the mask must cover: later tokens only. No query is before a kept pair, and no kept pair is padding."""
        return self.keys.shape[2] + query_length, self._before

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
    """The model whose `generate` can go on from `cache`: `model` itself, or its view where layers are ragged."""
    if cache is None or not any(isinstance(layer, RaggedLayer) for layer in cache.layers):
        return model
    view = attention_view(model)
    view.generation_config = model.generation_config  # not the copy of the day the view was made
    return view


def _joined(kept: Tensor, lengths: list[int], later: Tensor) -> Tensor:
    """[pairs, head_dim]: what each head of each row kept, followed by its later tokens."""
    pieces = zip(kept.split(lengths), later.flatten(0, 1), strict=True)
    return torch.cat([part for pair in pieces for part in pair])


def attend_per_head(
    query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], mask: Tensor | None, scaling: float
) -> Tensor:
    """SDPA for one KV head of one row after the other.

    Args:
        query: [batch, heads, new tokens, head_dim].
        keys, values: [sum of lengths, head_dim].
        lengths: pairs of each KV head of each row; the new tokens' own are the last.
        mask: [batch, 1, new tokens, any], for the last pairs of each; those before are seen by all. None: causal.
        scaling: factor of query @ key.

    Returns:
        [batch, new tokens, heads, head_dim].
    """
    batch, heads, tokens, _ = query.shape
    kv_heads = len(lengths) // batch
    if mask is None and tokens > 1:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().expand(batch, 1, -1, -1)
    rows = query.unflatten(1, (kv_heads, -1)).flatten(0, 1)  # [batch * kv_heads, group, tokens, head_dim]
    if tokens == 1:  # the group's queries as if they were tokens: their pairs are read once, not once for each
        rows = rows.transpose(1, 2)
    found = []
    for i, (key, value) in enumerate(zip(keys.split(lengths), values.split(lengths), strict=True)):
        seen = None
        if mask is not None:
            ones = float(mask.dtype == torch.bool)
            seen = F.pad(mask[i // kv_heads, 0], (lengths[i] - mask.shape[-1], 0), value=ones)
        shape = (1, rows.shape[1], -1, -1)
        found.append(
            F.scaled_dot_product_attention(
                rows[i : i + 1], key.expand(shape), value.expand(shape), attn_mask=seen, scale=scaling
            )
        )
    out = torch.cat(found)
    if tokens == 1:
        out = out.transpose(1, 2)
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2)


def attend_varlen(
    kernel: Callable[..., Any], query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], scaling: float
) -> Tensor:
    """All heads in one call of flash-attn's `flash_attn_varlen_func`: each is a sequence with one KV head.

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
    """flash-attn's kernel, where it is installed and can compute this."""
    if mask is not None or not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    return _flash_attn()


@cache
def _flash_attn() -> Callable[..., Any] | None:
    try:
        kernel: Callable[..., Any] = import_module("flash_attn").flash_attn_varlen_func
    except ImportError:
        return None
    return kernel
