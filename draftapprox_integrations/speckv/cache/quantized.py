"""Quantized KV cache layer: kept pairs in 8 or 4 bits, quantized once on eviction; later tokens in full precision.

It saves memory, not time: at every step a layer's kept pairs are dequantized to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.utils.import_utils import is_hqq_available, is_optimum_quanto_available

from ...config import KVQuantization
from ...errors import MissingDependencyError
from .evicted import EvictedLayer, KeptPromptLayer


class Codec(Protocol):
    """Quantizes keys and values [batch, kv_heads, pairs, head_dim]; dequantizes to the same shape and dtype."""

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Any, Any]:
        """Quantize keys and values."""

    def unpack(self, packed: Any) -> Tensor:
        """Dequantize one of them."""


@dataclass(frozen=True)
class Packed:
    """Quantized numbers in groups of neighbours; each group has its minimum and its step.

    Attributes:
        codes: uint8 [..., groups, group] with 8 bits; with 4 bits two per byte, [..., groups, group / 2].
        step: float32 [..., groups, 1].
        low: Minimum, [..., groups, 1], in the numbers' dtype.
        count: Numbers along the last dimension, without the padding of the last group.
        bits: 8 or 4.
        transposed: Whether the last two dimensions are exchanged.
    """

    codes: Tensor
    step: Tensor
    low: Tensor
    count: int
    bits: int
    transposed: bool


class TorchCodec:
    """Asymmetric integer codec in PyTorch: keys in groups along a channel, values along a token, as in KIVI.

    Keys have channels that are large in every token; values do not (Liu et al. 2024, arXiv 2402.02750).
    """

    def __init__(self, settings: KVQuantization):
        self._bits, self._group = settings.bits, settings.group_size

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Packed, Packed]:
        """Quantize; the error is at most half a step of the group plus the rounding of the dtype."""
        return self._pack(keys.transpose(2, 3), transposed=True), self._pack(values, transposed=False)

    def _pack(self, numbers: Tensor, *, transposed: bool) -> Packed:
        count = numbers.shape[-1]
        groups = -(-count // self._group)
        size = -(-count // groups)  # even sizes waste less than a nearly empty last group
        size += size % 2 if self._bits == 4 else 0
        padding = numbers[..., -1:].expand(*numbers.shape[:-1], groups * size - count)
        grouped = torch.cat([numbers, padding], dim=-1).unflatten(-1, (groups, size))
        low = grouped.amin(dim=-1, keepdim=True)
        spread = grouped.amax(dim=-1, keepdim=True).float() - low.float()
        step = torch.where(spread > 0, spread / (2**self._bits - 1), 1.0)
        codes = ((grouped.float() - low.float()) / step).round_().to(torch.uint8)
        if self._bits == 4:
            codes = codes[..., ::2] | codes[..., 1::2] << 4
        return Packed(codes, step, low, count, self._bits, transposed)

    def unpack(self, packed: Packed) -> Tensor:
        """Dequantize to the original dtype."""
        codes = packed.codes
        if packed.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        numbers = codes.float().mul_(packed.step).add_(packed.low.float()).to(packed.low.dtype)
        numbers = numbers.flatten(-2)[..., : packed.count]
        return numbers.transpose(2, 3) if packed.transposed else numbers


class LibraryCodec:
    """Codec of transformers' quantized cache layers, for "hqq" and "quanto": groups along each token.

    Raises:
        MissingDependencyError: the library is not installed.
    """

    def __init__(self, settings: KVQuantization):
        library, layer, axis, installed = {
            "hqq": ("hqq", cache_utils.HQQQuantizedLayer, 1, is_hqq_available),
            "quanto": ("optimum-quanto", cache_utils.QuantoQuantizedLayer, 0, is_optimum_quanto_available),
        }[settings.backend]
        if not installed():
            raise MissingDependencyError(
                f'kv_quantization with backend "{settings.backend}" needs {library}: '
                'pip install "draftapprox-integrations[quantization]". Backend "torch" needs nothing.'
            )
        self._axis, self._group = axis, settings.group_size
        self._layer = layer(nbits=settings.bits, axis_key=axis, axis_value=axis, q_group_size=settings.group_size)

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Any, Any]:
        """Quantize with the library."""
        self._layer.lazy_initialization(keys, values)  # sets the library's device and dtype
        return self._pack(keys), self._pack(values)

    def _pack(self, numbers: Tensor) -> Any:
        size = min(self._group, numbers.shape[-1])
        while numbers.shape[-1] % size:  # a group must not span two tokens, which may belong to two rows
            size -= 1
        self._layer.q_group_size = size
        return self._layer._quantize(numbers.contiguous(), self._axis)

    def unpack(self, packed: Any) -> Tensor:
        """Dequantize with the library."""
        numbers: Tensor = self._layer._dequantize(packed)
        return numbers.to(self._layer.dtype)


def make_codec(settings: KVQuantization) -> Codec:
    """Make the codec of these settings.

    Raises:
        MissingDependencyError: its library is not installed.
    """
    return TorchCodec(settings) if settings.backend == "torch" else LibraryCodec(settings)


class QuantizedLayer(KeptPromptLayer, EvictedLayer):
    """`EvictedLayer` whose kept pairs are quantized; `keys` and `values` hold later tokens only.

    Before `keep` it stores everything in full precision, so prefill and scoring are not affected.
    """

    def __init__(self, settings: KVQuantization):
        super().__init__()
        self._codec = make_codec(settings)
        self._packed: tuple[Any, Any] | None = None
        self._rows: Tensor | None = None  # index of the packed row that each row of the batch uses, after a reordering
        self._kept_count = 0

    def keep(self, indices: Tensor, length: int) -> None:
        """Evict as `EvictedLayer.keep` does, then quantize the kept pairs."""
        super().keep(indices, length)
        assert self.keys is not None
        assert self.values is not None
        self._packed, self._kept_count = self._codec.pack(self.keys, self.values), indices.shape[-1]
        self.keys = self.keys.new_empty(*self.keys.shape[:2], 0, self.keys.shape[-1])
        self.values = self.values.new_empty(*self.values.shape[:2], 0, self.values.shape[-1])

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """Dequantized kept keys and values, each [batch, kv_heads, kept, head_dim]."""
        assert self._packed is not None
        keys, values = (self._codec.unpack(packed) for packed in self._packed)
        return (keys, values) if self._rows is None else (keys[self._rows], values[self._rows])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens and return all keys and values."""
        keys, values = super().update(key_states, value_states)
        if self._packed is None:
            return keys, values
        kept_keys, kept_values = self.unpacked()
        return torch.cat([kept_keys, keys], dim=2), torch.cat([kept_values, values], dim=2)

    def get_seq_length(self) -> int:
        """Number of tokens in the sequence so far, evicted ones included."""
        return super().get_seq_length() + self._kept_count

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        assert self.keys is not None
        assert self.values is not None
        indices, all_rows = indices.to(self.keys.device), torch.arange(len(self.keys), device=self.keys.device)
        rows = all_rows if self._rows is None else self._rows
        self._rows, self.keys, self.values = rows[indices], self.keys[indices], self.values[indices]


def cache_bytes(cache: DynamicCache) -> int:
    """Total size in bytes of the tensors in the layers of `cache`."""
    return sum(_bytes(vars(layer).values()) for layer in cache.layers)


def _bytes(values: Iterable[Any]) -> int:
    total = 0
    for value in values:
        if type(value) is Tensor:
            total += value.nbytes
        elif isinstance(value, tuple | list):
            total += _bytes(value)
        elif isinstance(value, dict):
            total += _bytes(value.values())
        elif isinstance(value, Packed | Tensor):  # a library's tensor consists of others
            total += _bytes(vars(value).values())
    return total
