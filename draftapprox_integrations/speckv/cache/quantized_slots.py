"""Slots of a running batch whose kept pairs are quantized; later tokens and prompts that fit are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...decoding.attend import attend_parts, attend_slots
from ...decoding.slots import SpanSlots
from ...decoding.spans import Span, additive_mask
from ...kernels.decode_attention import decode_attention
from ...kernels.dispatch import use_triton
from ...kernels.pairs import PackedPairs, pairs_of
from .codec import Codec, Packed


class QuantizedSlots(SpanSlots):
    """Layer whose slots hold quantized pairs of the prompt and, in buffers of their own, later tokens.

    Args:
        fed: The entries of the buffers: tokens after the prompt, or all of a prompt that lost nothing.
        codec: Unpacks what the prefilled layers hold.
    """

    def __init__(self, fed: Span, codec: Codec):
        super().__init__(fed)
        self._codec = codec
        self._is_attended = True  # False where the model derives the keys that it attends to from what it caches
        self._packed: list[tuple[Any, Any] | None] = [None] * len(fed.ends)  # per slot, where a library packed them
        self._stacked: tuple[Packed, Packed] | None = None  # all slots, where `TorchCodec` did
        self._kept = [0] * len(fed.ends)  # per slot, how many of its packed pairs count: all or none
        self._width = 0  # packed pairs per slot
        self._bias: Tensor | None = None  # [slots, 1, 1, width]
        self._counts: Tensor | None = None  # LongTensor [slots, kv_heads], the packed pairs that count

    def entries_for(self, source: Any, tokens: int) -> int:
        """A row's later tokens; all of its pairs where none were quantized."""
        return 0 if getattr(source, "kept_count", 0) else min(tokens, int(source.keys.shape[2]))

    def admit(self, slot: int, source: Any, row: int, tokens: int) -> None:
        """Copy a row's packed pairs, or, where it fits the budget, its dense ones."""
        super().admit(slot, source, row, tokens)
        packed = source.packed_row(row) if hasattr(source, "packed_row") else None
        self._kept[slot] = 0
        if packed is not None:
            self._width, self._is_attended = source.kept_count, source.is_attended
            self._kept[slot] = min(tokens, self._width)
            if isinstance(packed[0], Packed):
                if self._stacked is None:
                    self._stacked = _repeated(packed[0], len(self._kept)), _repeated(packed[1], len(self._kept))
                for stack, part in zip(self._stacked, packed, strict=True):
                    stack.set_row(slot, part)
            else:
                self._packed[slot] = packed
        self._mask()

    def _mask(self) -> None:
        if self._width and self.buffers is not None:
            device, dtype = self.place()
            first = self._width - torch.tensor(self._kept, device=device)
            outside = torch.arange(self._width, device=device) < first[:, None]
            self._bias = additive_mask(outside, dtype)
            assert all(kept in (0, self._width) for kept in self._kept)  # the kernel counts from the first pair
            self._counts = torch.tensor(self._kept, device=device)[:, None].expand(-1, self.buffers[0].shape[1])

    def move(self, source: int, slot: int) -> None:
        """Copy one slot's pairs over another's."""
        super().move(source, slot)
        self._packed[slot], self._kept[slot] = self._packed[source], self._kept[source]
        for stack in self._stacked or ():
            stack.set_row(slot, stack.row(source))
        self._mask()

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        super().resize(slots)
        self._packed = (self._packed + [None] * slots)[:slots]
        self._kept = (self._kept + [0] * slots)[:slots]
        if self._stacked is not None:
            keys, values = (_repeated(stack.row(0), slots, stack) for stack in self._stacked)
            self._stacked = keys, values
        self._mask()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write one token of each row; returns the layer itself in place of keys and of values (`SelfAttending`)."""
        recent = super().update(key_states, value_states)
        if self._is_attended:
            self._recent = recent
            return self, self
        if not self._width:
            return recent
        kept, rows = self._unpacked(len(key_states)), len(key_states)
        assert self.step is not None
        assert self._bias is not None
        later = self.step.bias
        if later is None:
            later = self._bias.new_zeros(rows, 1, 1, recent[0].shape[2])
        self.step = replace(self.step, bias=torch.cat([self._bias[:rows], later], dim=3))
        self.current = torch.cat([kept[0], recent[0]], dim=2)
        return self.current, torch.cat([kept[1], recent[1]], dim=2)

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Compute the newest tokens' attention; see `SelfAttending.attend`. One token per row, so there is no mask."""
        rows, (keys, values) = len(query), self._recent
        assert self.step is not None
        if not self._width:
            return attend_slots(query, keys, values, self.step, scaling)
        if self._stacked is not None and self.step.lengths is not None and use_triton(query):
            assert self.buffers is not None
            assert self._counts is not None
            keys_packed, values_packed = (stack.rows(rows) for stack in self._stacked)
            packed = PackedPairs(keys_packed, values_packed, self._counts[:rows])
            later = pairs_of(self.buffers[0][:rows], self.buffers[1][:rows], self.step.lengths, self.step.lowers)
            return decode_attention(query[:, :, 0], [packed, later], scaling)[:, None]
        assert self._bias is not None
        kept = self._unpacked(rows)
        return attend_parts(query, [(*kept, self._bias[:rows]), (keys, values, self.step.bias)], scaling)

    def _unpacked(self, rows: int) -> tuple[Tensor, Tensor]:
        """Dequantized keys and values [rows, kv_heads, width, head_dim]; any numbers in rows that have none."""
        if self._stacked is not None:
            keys, values = (self._codec.unpack(stack.rows(rows)) for stack in self._stacked)
            return keys, values
        some = next(packed for packed in self._packed if packed is not None)
        parts = [[self._codec.unpack(part) for part in packed or some] for packed in self._packed[:rows]]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _repeated(row: Packed, slots: int, old: Packed | None = None) -> Packed:
    """Room for `slots` rows like `row`, which begins with the rows of `old`."""
    stack = replace(
        row,
        **{name: getattr(row, name).repeat(slots, *[1] * (getattr(row, name).dim() - 1)) for name in Packed.TENSORS},
    )
    if old is not None:
        for index in range(min(slots, len(old.codes))):
            stack.set_row(index, old.row(index))
    return stack
