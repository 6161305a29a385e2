"""Kept KV pairs held in 8 or 4 bits. They are quantized once, when the others are dropped; later tokens are not.

Memory is what this saves: for every new token a layer's kept pairs are turned back into the model's precision.
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
    """Packs keys and values [batch, kv_heads, pairs, head_dim], and unpacks them to the same shape and dtype."""

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Any, Any]:
        """Both in few bits."""

    def unpack(self, packed: Any) -> Tensor:
        """One of them as it was, but for what the bits cannot tell."""


@dataclass(frozen=True)
class Packed:
    """Numbers in groups of neighbours, each group with its smallest number and its step.

    Attributes:
        codes: uint8 [..., groups, group] with 8 bits; with 4 two to a byte, [..., groups, group / 2].
        step: float32 [..., groups, 1].
        low: [..., groups, 1], in the numbers' dtype.
        count: Numbers along the last dimension, without the filling of the last group.
        bits: 8 or 4.
        turned: The last two dimensions are exchanged.
    """

    codes: Tensor
    step: Tensor
    low: Tensor
    count: int
    bits: int
    turned: bool


class TorchCodec:
    """Asymmetric integers, keys in groups along a channel and values in groups along a token, as KIVI has it.

    Keys have channels that are large in every token, values do not (Liu et al. 2024, arXiv 2402.02750).
    """

    def __init__(self, settings: KVQuantization):
        self._bits, self._group = settings.bits, settings.group_size

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Packed, Packed]:
        """Off by half a step of the group at most, and the rounding of the dtype."""
        return self._pack(keys.transpose(2, 3), turned=True), self._pack(values, turned=False)

    def _pack(self, numbers: Tensor, *, turned: bool) -> Packed:
        count = numbers.shape[-1]
        groups = -(-count // self._group)
        size = -(-count // groups)  # groups of even size waste less than a last one that is nearly empty
        size += size % 2 if self._bits == 4 else 0
        filling = numbers[..., -1:].expand(*numbers.shape[:-1], groups * size - count)
        grouped = torch.cat([numbers, filling], dim=-1).unflatten(-1, (groups, size))
        low = grouped.amin(dim=-1, keepdim=True)
        spread = grouped.amax(dim=-1, keepdim=True).float() - low.float()
        step = torch.where(spread > 0, spread / (2**self._bits - 1), 1.0)
        codes = ((grouped.float() - low.float()) / step).round_().to(torch.uint8)
        if self._bits == 4:
            codes = codes[..., ::2] | codes[..., 1::2] << 4
        return Packed(codes, step, low, count, self._bits, turned)

    def unpack(self, packed: Packed) -> Tensor:
        """The numbers, in the dtype they had."""
        codes = packed.codes
        if packed.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        numbers = codes.float().mul_(packed.step).add_(packed.low.float()).to(packed.low.dtype)
        numbers = numbers.flatten(-2)[..., : packed.count]
        return numbers.transpose(2, 3) if packed.turned else numbers


class LibraryCodec:
    """What the layers of transformers' quantized cache do, for "hqq" and "quanto": groups along each token.

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
        """Packed by the library."""
        self._layer.lazy_initialization(keys, values)  # it tells the library device and dtype
        return self._pack(keys), self._pack(values)

    def _pack(self, numbers: Tensor) -> Any:
        size = min(self._group, numbers.shape[-1])
        while numbers.shape[-1] % size:  # a group must not reach into the next token, or it could into the next row
            size -= 1
        self._layer.q_group_size = size
        return self._layer._quantize(numbers.contiguous(), self._axis)

    def unpack(self, packed: Any) -> Tensor:
        """Unpacked by the library."""
        numbers: Tensor = self._layer._dequantize(packed)
        return numbers.to(self._layer.dtype)


def make_codec(settings: KVQuantization) -> Codec:
    """The codec of these settings.

    Raises:
        MissingDependencyError: its library is not installed.
    """
    return TorchCodec(settings) if settings.backend == "torch" else LibraryCodec(settings)


class QuantizedLayer(KeptPromptLayer, EvictedLayer):
    """An `EvictedLayer` whose kept pairs are packed; `keys` and `values` are those of later tokens alone.

    Until `keep` it holds everything as it came, so that prefill and the choice of pairs know nothing of it.
    """

    def __init__(self, settings: KVQuantization):
        super().__init__()
        self._codec = make_codec(settings)
        self._packed: tuple[Any, Any] | None = None
        self._rows: Tensor | None = None  # which packed row each row of the batch reads, after a reordering
        self._held = 0

    def keep(self, positions: Tensor, length: int) -> None:
        """As `EvictedLayer.keep`, and pack what is kept."""
        super().keep(positions, length)
        assert self.keys is not None
        assert self.values is not None
        self._packed, self._held = self._codec.pack(self.keys, self.values), positions.shape[-1]
        self.keys = self.keys.new_empty(*self.keys.shape[:2], 0, self.keys.shape[-1])
        self.values = self.values.new_empty(*self.values.shape[:2], 0, self.values.shape[-1])

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """The kept keys and values, [batch, kv_heads, kept, head_dim]."""
        assert self._packed is not None
        keys, values = (self._codec.unpack(packed) for packed in self._packed)
        return (keys, values) if self._rows is None else (keys[self._rows], values[self._rows])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add new tokens; all keys and values."""
        keys, values = super().update(key_states, value_states)
        if self._packed is None:
            return keys, values
        kept_keys, kept_values = self.unpacked()
        return torch.cat([kept_keys, keys], dim=2), torch.cat([kept_values, values], dim=2)

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones included."""
        return super().get_seq_length() + self._held

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        assert self.keys is not None
        assert self.values is not None
        indices, every = indices.to(self.keys.device), torch.arange(len(self.keys), device=self.keys.device)
        rows = every if self._rows is None else self._rows
        self._rows, self.keys, self.values = rows[indices], self.keys[indices], self.values[indices]


def held_bytes(cache: DynamicCache) -> int:
    """Bytes of all tensors that the layers of `cache` hold."""
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
        elif isinstance(value, Packed | Tensor):  # a library's tensor is made of others
            total += _bytes(vars(value).values())
    return total
