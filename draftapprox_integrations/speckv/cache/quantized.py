"""Quantized KV cache layer: kept pairs in 8 or 4 bits, quantized once on eviction; later tokens in full precision.

It saves memory, not time: without the GPU kernels a layer's kept pairs are dequantized at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ...config import KVQuantization
from ...errors import UnsupportedModelError
from .codec import Packed, make_codec
from .evicted import EvictedLayer, KeptPromptLayer


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
        self.is_attended = True  # False where a model derives the keys that it attends to from what it caches (MLA)

    def keep(self, indices: Tensor, length: int) -> None:
        """Evict as `EvictedLayer.keep` does, then quantize the kept pairs."""
        super().keep(indices, length)
        assert self.keys is not None
        assert self.values is not None
        self._packed, self._kept_count = self._codec.pack(self.keys, self.values), indices.shape[-1]
        self.keys = self.keys.new_empty(*self.keys.shape[:2], 0, self.keys.shape[-1])
        self.values = self.values.new_empty(*self.values.shape[:2], 0, self.values.shape[-1])

    def packed_row(self, row: int) -> tuple[Any, Any] | None:
        """Quantized keys and values of one row; None where nothing was evicted.

        Raises:
            UnsupportedModelError: a library's packed batch has no rows.
        """
        if self._packed is None or self._kept_count == 0:
            return None
        if isinstance(self._packed[0], Packed):
            return self._packed[0].row(row), self._packed[1].row(row)
        if self.keys is not None and len(self.keys) > 1:
            raise UnsupportedModelError("a batch that a library quantized cannot be taken apart")
        return self._packed

    @property
    def kept_count(self) -> int:
        """Number of quantized pairs per head, padding of short rows included."""
        return self._kept_count

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
    """Total size in bytes of the memory that the layers of `cache` hold."""
    storages: dict[int, int] = {}
    for layer in cache.layers:
        _collect(vars(layer).values(), storages)
    return sum(storages.values())


def _collect(values: Iterable[Any], storages: dict[int, int]) -> None:
    """Add the memory of all tensors among `values`: address -> bytes."""
    for value in values:
        if type(value) is Tensor:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple | list):
            _collect(value, storages)
        elif isinstance(value, dict):
            _collect(value.values(), storages)
        elif isinstance(value, Packed | Tensor):  # a library's tensor consists of others
            _collect(vars(value).values(), storages)
