"""A cache layer that appends to a buffer with spare room instead of concatenating the whole cache at every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Room for further tokens when a buffer is made: this many entries, or a quarter of what it holds.
RESERVE = 64


class BufferedLayer(DynamicLayer):
    """`DynamicLayer` whose `keys` and `values` are views of larger buffers.

    Args:
        reserve: Room for further tokens, in entries, made at the first tokens; 0 to store those without a copy.
    """

    def __init__(self, reserve: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reserve = reserve
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._views: tuple[Tensor | None, Tensor | None] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens and return all keys and values."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        keys, values = self.keys, self.values
        if keys is None or values is None:
            if self._reserve == 0:
                self.keys, self.values = key_states, value_states
                return key_states, value_states
            keys, values = key_states[:, :, :0], value_states[:, :, :0]
        count, stop = keys.shape[2], keys.shape[2] + key_states.shape[2]
        # Whoever crops or reorders the cache replaces `keys`: then the buffers are not ours any more.
        mine = keys is self._views[0] and values is self._views[1]
        if self._buffers is None or not mine or self._buffers[0].shape[2] < stop:
            capacity = stop + max(self._reserve, RESERVE, count // 4)
            self._buffers = _copied(keys, capacity), _copied(values, capacity)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, count:stop] = new
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
        self._views = self.keys, self.values
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def take_buffers(self) -> tuple[Tensor, Tensor]:
        """Return the buffers [batch, kv_heads, entries and spare room, head_dim], and forget them.

        The first `get_seq_length` entries are filled. Without spare room they are what `keys` and `values` hold.
        """
        assert self.keys is not None
        assert self.values is not None
        buffers = self._buffers if self.keys is self._views[0] else None
        keys, values = buffers or (self.keys, self.values)
        self.keys, self.values, self._buffers, self._views = None, None, None, (None, None)
        return keys, values


def _copied(states: Tensor, capacity: int) -> Tensor:
    """A buffer of `capacity` entries that begins with `states` [batch, heads, entries, dim]."""
    buffer = states.new_empty(*states.shape[:2], capacity, states.shape[-1])
    buffer[:, :, : states.shape[2]] = states
    buffer[:, :, states.shape[2] :] = 0  # masked entries are multiplied by 0, which must not meet a NaN
    return buffer
