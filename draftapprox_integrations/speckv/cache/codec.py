"""Codecs that quantize kept pairs to 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.utils.import_utils import is_hqq_available, is_optimum_quanto_available

from ...config import KVQuantization
from ...errors import MissingDependencyError


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

    TENSORS: ClassVar = ("codes", "step", "low")

    def row(self, row: int) -> Packed:
        """One row of the batch, as a batch of one; the tensors are views."""
        return replace(self, **{name: getattr(self, name)[row : row + 1] for name in self.TENSORS})

    def rows(self, rows: int) -> Packed:
        """The first rows of the batch; the tensors are views."""
        return replace(self, **{name: getattr(self, name)[:rows] for name in self.TENSORS})

    def set_row(self, row: int, other: Packed) -> None:
        """Copy a batch of one over a row."""
        for name in self.TENSORS:
            getattr(self, name)[row : row + 1] = getattr(other, name)


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
