"""Attention of one new query per row to everything that a running batch has cached.

The pairs lie in parts: what eviction kept, dense or quantized, and the tokens since. The kernel reads each part where
it is, in splits (flash-decoding, Dao et al. 2023), so that a small batch with a long cache fills the GPU, and merges
the splits of all parts by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import dispatch
from .pairs import Codes, PackedPairs, Pairs


def decode_attention(query: Tensor, parts: Sequence[Pairs | PackedPairs], scaling: float) -> Tensor:
    """Compute softmax attention over the union of all parts; it can be captured in a CUDA graph.

    Args:
        query: [batch, heads, head_dim], float32, float16 or bfloat16.
        parts: At least one. Slots that `lengths` does not count are not read: they may hold anything.
        scaling: Factor of query @ key.

    Returns:
        [batch, heads, value_dim] in the query's dtype; zeros for a row without pairs.
    """
    return dispatch(query, _triton_form, torch_form, query, parts, scaling)


def _triton_form(query: Tensor, parts: Sequence[Pairs | PackedPairs], scaling: float) -> Tensor:
    from .triton_decode import attend

    return attend(query, parts, scaling)


def torch_form(query: Tensor, parts: Sequence[Pairs | PackedPairs], scaling: float) -> Tensor:
    """Compute `decode_attention` in float32 with PyTorch. Shapes depend on shapes only, so it can be captured too."""
    kv_heads = parts[0].lengths.shape[1]
    grouped = query.unflatten(1, (kv_heads, -1)).float() * scaling
    logits, values, masks = [], [], []
    for part in parts:
        part_keys, part_values = _gather(part) if isinstance(part, Pairs) else _unpack(part)
        valid = torch.arange(part.capacity, device=query.device) < part.lengths[..., None]
        masks.append(valid)
        logits.append(grouped @ part_keys.float().transpose(-1, -2))
        values.append(part_values.float().masked_fill(~valid[..., None], 0.0))  # 0 * NaN is NaN
    invalid = ~torch.cat(masks, dim=-1)[:, :, None]
    weights = torch.cat(logits, dim=-1).masked_fill_(invalid, -torch.inf).softmax(dim=-1)
    weights = weights.masked_fill(invalid, 0.0)  # without pairs the softmax is NaN
    return (weights @ torch.cat(values, dim=-2)).flatten(1, 2).to(query.dtype)


def _gather(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, kv_heads, capacity, dim]; anything beyond the lengths."""
    if not len(pairs.keys):  # no entry that an index could stand for
        shape = (*pairs.lengths.shape, pairs.capacity)
        return pairs.keys.new_zeros(*shape, pairs.keys.shape[1]), pairs.values.new_zeros(*shape, pairs.value_dim)
    slots = torch.arange(pairs.capacity, device=pairs.keys.device)
    index = torch.where(slots < pairs.lengths[..., None], pairs.starts[..., None] + slots, 0)
    return pairs.keys[index], pairs.values[index]


def _unpack(pairs: PackedPairs) -> tuple[Tensor, Tensor]:
    """Dequantized keys and values [batch, kv_heads, capacity, dim]."""
    return _dequantize(pairs.keys).transpose(-1, -2), _dequantize(pairs.values)


def _dequantize(packed: Codes) -> Tensor:
    """Numbers [..., count], rounded as `TorchCodec.unpack` rounds them."""
    codes = packed.codes
    if packed.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    numbers = (codes.float() * packed.step + packed.low.float()).to(packed.low.dtype)
    return numbers.flatten(-2)[..., : packed.count]
