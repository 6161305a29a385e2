"""Slots of one layer: where the pairs, or the states, of each row of a running batch lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from .spans import Span, SpanStep


class SlotStorage(CacheLayerMixin):
    """One layer of a running batch's cache.

    Args:
        span: The entries that count, shared with layers of the same kind.

    Attributes:
        step: The plan of the running step.
    """

    def __init__(self, span: Span):
        super().__init__()  # type: ignore[no-untyped-call]
        self.span = span
        self.step: SpanStep | None = None

    @abstractmethod
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the keys."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: slots get their sizes from what they admit."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not used: a step brings its own mask."""
        return query_length, 0

    def get_max_length(self) -> int:
        """-1: there is none."""
        return -1

    def get_seq_length(self) -> int:
        """Not used: `SlotCache.get_seq_length` answers for all layers."""
        return 0

    @abstractmethod
    def resize(self, slots: int) -> None:
        """Change the number of slots; the first ones keep their pairs."""

    @abstractmethod
    def entries_for(self, source: Any, tokens: int) -> int:
        """Entries of the layer's span that a row of a prefilled cache's layer needs."""

    @abstractmethod
    def admit(self, slot: int, source: Any, row: int, tokens: int) -> None:
        """Copy the pairs of a row of a prefilled cache's layer, which holds `tokens` tokens of it, into a slot."""

    @abstractmethod
    def move(self, source: int, slot: int) -> None:
        """Copy one slot's pairs over another's."""

    @abstractmethod
    def reserve(self, capacity: int) -> None:
        """Grow the buffers to `capacity` entries per slot."""


class SpanSlots(SlotStorage):
    """Layer whose slots hold equally many tokens in all heads: full attention, a sliding window, or a chunk.

    Args:
        span: The entries that count, shared with layers of the same kind.

    Attributes:
        buffers: Keys and values, each [slots, kv_heads, capacity, head_dim]; None before the first pairs.
        current: What the running step returned as keys.
    """

    def __init__(self, span: Span):
        super().__init__(span)
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.current: Tensor | None = None

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the keys."""
        assert self.buffers is not None
        return self.buffers[0].device, self.buffers[0].dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token of each row and return the keys and values that the step reads."""
        assert self.buffers is not None
        assert self.step is not None
        rows, step = key_states.shape[0], self.step
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            if step.entry is not None:
                buffer[:rows, :, step.entry] = new[:, :, 0]
            else:
                assert step.index is not None
                buffer[:rows].scatter_(2, step.index.expand(-1, new.shape[1], -1, new.shape[3]), new)
        keys, values = (buffer[:rows, :, step.start : step.stop] for buffer in self.buffers)
        self.current = keys
        return keys, values

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        if self.buffers is not None:
            self.buffers = tuple(_resized(buffer, slots, self.span.capacity) for buffer in self.buffers)  # type: ignore[assignment]

    def reserve(self, capacity: int) -> None:
        """Grow the buffers; the span's capacity is the caller's to change."""
        if self.buffers is not None and self.buffers[0].shape[2] < capacity:
            self.buffers = tuple(_resized(buffer, len(buffer), capacity) for buffer in self.buffers)  # type: ignore[assignment]

    def entries_for(self, source: Any, tokens: int) -> int:
        """A row's pairs."""
        return min(tokens, int(source.keys.shape[2]))

    def admit(self, slot: int, source: Any, row: int, tokens: int) -> None:
        """Copy a row's last pairs to the beginning of a slot."""
        states, count = (source.keys, source.values), self.entries_for(source, tokens)
        if self.buffers is None:
            slots = len(self.span.ends)
            self.buffers = tuple(
                state.new_zeros(slots, state.shape[1], self.span.capacity, state.shape[3]) for state in states
            )
        assert self.buffers is not None
        for buffer, state in zip(self.buffers, states, strict=True):
            buffer[slot, :, :count] = state[row, :, state.shape[2] - count :]
            buffer[slot, :, count:] = 0  # masked entries are multiplied by 0, which must not meet a NaN
        self.span.firsts[slot], self.span.ends[slot] = 0, count

    def move(self, source: int, slot: int) -> None:
        """Copy one slot's pairs over another's."""
        assert self.buffers is not None
        for buffer in self.buffers:
            buffer[slot] = buffer[source]


class StateSlots(LinearAttentionLayer):
    """Slots of a convolutional or recurrent layer: one state of a fixed size per slot.

    Args:
        states: Number of states in the layer.
    """

    def __init__(self, states: int = 1) -> None:
        super().__init__(number_of_states=states)
        self.state_buffers: dict[tuple[str, int], Tensor] = {}

    def begin(self, rows: int) -> None:
        """Let the model see, and change in place, the states of the first `rows` slots."""
        for (kind, index), buffer in self.state_buffers.items():
            getattr(self, kind)[index] = buffer[:rows]

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        for key, old in self.state_buffers.items():
            self.state_buffers[key] = old.new_zeros(slots, *old.shape[1:])
            self.state_buffers[key][: min(slots, len(old))] = old[:slots]

    def admit_states(self, slot: int, source: LinearAttentionLayer, row: int, slots: int) -> None:
        """Copy a row's states; `slots` is the number of slots."""
        for kind in ("conv_states", "recurrent_states"):
            for index, states in getattr(source, kind).items():
                if states is None:
                    continue
                if (kind, index) not in self.state_buffers:
                    self.state_buffers[kind, index] = states.new_zeros(slots, *states.shape[1:])
                    getattr(self, f"is_{kind}_initialized")[index] = True
                    self.device, self.dtype = states.device, states.dtype
                self.state_buffers[kind, index][slot] = states[row]
                self.conv_kernel_size[index] = source.conv_kernel_size[index]
                self.has_previous_state[index] = True

    def move(self, source: int, slot: int) -> None:
        """Copy one slot's states over another's."""
        for buffer in self.state_buffers.values():
            buffer[slot] = buffer[source]


def _resized(buffer: Tensor, slots: int, capacity: int) -> Tensor:
    """A buffer [slots, heads, capacity, dim] that begins with the old one."""
    if buffer.shape[0] == slots and buffer.shape[2] == capacity:
        return buffer
    new = buffer.new_zeros(slots, buffer.shape[1], capacity, buffer.shape[3])
    rows, entries = min(slots, len(buffer)), min(capacity, buffer.shape[2])
    new[:rows, :, :entries] = buffer[:rows, :, :entries]
    return new


# Makes the slots of a full-attention layer; the span counts the tokens of each slot after its prompt.
MakeSlots: TypeAlias = Callable[[Span], SlotStorage]
