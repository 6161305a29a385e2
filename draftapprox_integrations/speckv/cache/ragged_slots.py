"""Slots of a running batch whose heads keep different numbers of pairs (adaptive head budgets)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decoding.slots import SlotStorage
from ...decoding.spans import Span
from ...kernels.decode_attention import decode_attention
from ...kernels.pairs import Pairs


class RaggedSlots(SlotStorage):
    """Layer whose slots hold a run of pairs per head: what the head kept of the prompt, then later tokens.

    All rows that dropped pairs keep equally many over all heads, so their slots are of one size.

    Args:
        fed: Counts the tokens of each slot after its prompt; its capacity is the room of each head for them.
    """

    def __init__(self, fed: Span):
        super().__init__(fed)
        self._buffers: tuple[Tensor, Tensor] | None = None  # [slots, entries, head_dim]
        self._room = 0
        self._kept: list[list[int]] = [[] for _ in fed.ends]  # pairs per slot and head
        self._starts: Tensor | None = None  # LongTensor [slots, kv_heads] into the flattened buffers
        self._counts: Tensor | None = None  # LongTensor [slots, kv_heads], kept pairs

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the keys."""
        assert self._buffers is not None
        return self._buffers[0].device, self._buffers[0].dtype

    def entries_for(self, source: Any, tokens: int) -> int:
        """None of the later tokens' entries: the prompt's pairs lie before them."""
        return 0

    def admit(self, slot: int, source: Any, row: int, tokens: int) -> None:
        """Copy the pairs of a row, ragged or, where it fits the budget, dense."""
        if hasattr(source, "kept_keys"):
            heads = source.keys.shape[1]
            rows = slice(row * heads, (row + 1) * heads)
            pieces = [(states.split(source.lengths)[rows]) for states in (source.kept_keys, source.kept_values)]
        else:
            count = min(tokens, source.keys.shape[2])
            pieces = [tuple(states[row, :, states.shape[2] - count :]) for states in (source.keys, source.values)]
        self._kept[slot] = []  # what the slot held is of no use
        self._fit([])
        self._kept[slot] = [len(piece) for piece in pieces[0]]
        self._fit([piece[0] for piece in pieces])
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, pieces, strict=True):
            buffer[slot] = 0
            for start, piece in zip(self._starts_of(slot), states, strict=True):
                buffer[slot, start : start + len(piece)] = piece
        self._count()

    def _fit(self, like: list[Tensor]) -> None:
        """Have buffers in which every slot has room for its pairs and later tokens."""
        entries = max(sum(kept) + len(kept) * self.span.capacity for kept in self._kept)
        slots, old = len(self._kept), self._buffers
        if old is None and not like:
            return
        if old is not None:
            fits = old[0].shape[0] == slots and old[0].shape[1] >= entries
            if fits and self._room == self.span.capacity:
                return
            entries = max(entries, old[0].shape[1])
        new = [states.new_zeros(slots, entries, states.shape[-1]) for states in (like if old is None else old)]
        if old is not None:
            for slot in range(min(slots, len(old[0]))):
                fed = self.span.ends[slot]
                moves = zip(self._starts_of(slot, self._room), self._starts_of(slot), self._kept[slot], strict=True)
                for before, start, kept in moves:
                    for buffer, states in zip(new, old, strict=True):
                        buffer[slot, start : start + kept + fed] = states[slot, before : before + kept + fed]
        self._buffers, self._room = (new[0], new[1]), self.span.capacity

    def _starts_of(self, slot: int, room: int | None = None) -> list[int]:
        """First entry of each head of a slot."""
        room = self.span.capacity if room is None else room
        return [sum(self._kept[slot][:head]) + head * room for head in range(len(self._kept[slot]))]

    def _count(self) -> None:
        if self._buffers is None:
            return
        heads, entries = max(map(len, self._kept)), self._buffers[0].shape[1]
        starts = [
            [slot * entries + start for start in self._starts_of(slot) or [0] * heads]
            for slot in range(len(self._kept))
        ]
        device = self._buffers[0].device
        self._starts = torch.tensor(starts, device=device)
        self._counts = torch.tensor([kept or [0] * heads for kept in self._kept], device=device)

    def move(self, source: int, slot: int) -> None:
        """Copy one slot's pairs over another's."""
        assert self._buffers is not None
        for buffer in self._buffers:
            buffer[slot] = buffer[source]
        self._kept[slot] = list(self._kept[source])
        self._count()

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        self._kept = (self._kept + [[] for _ in range(slots)])[:slots]
        self._fit([])
        self._count()

    def reserve(self, capacity: int) -> None:
        """Give each head more room for later tokens."""
        self._fit([])
        self._count()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write one token of each row; returns the layer itself in place of keys and of values (`SelfAttending`)."""
        rows = len(key_states)
        assert self._buffers is not None
        index = (self._ends(rows)).flatten()
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.flatten(0, 1).index_copy_(0, index, new.flatten(0, 2))
        return self, self

    def _ends(self, rows: int) -> Tensor:
        """LongTensor [rows, kv_heads]: the entry of each head's newest token."""
        assert self.step is not None
        assert self._starts is not None
        assert self._counts is not None
        fed: int | Tensor = self.step.index.view(-1, 1) if self.step.index is not None else self.step.entry or 0
        return self._starts[:rows] + self._counts[:rows] + fed

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Compute the newest tokens' attention; see `SelfAttending.attend`. One token per row, so there is no mask."""
        rows = len(query)
        assert self.step is not None
        assert self._buffers is not None
        if self.step.lengths is None and not query.is_cuda:
            return self._attend_per_head(query, scaling)
        assert self._starts is not None
        starts = self._starts[:rows]
        keys, values = (buffer.flatten(0, 1) for buffer in self._buffers)
        pairs = Pairs(keys, values, starts, self._ends(rows) - starts + 1, self._buffers[0].shape[1])
        return decode_attention(query[:, :, 0], [pairs], scaling)[:, None]

    def _attend_per_head(self, query: Tensor, scaling: float) -> Tensor:
        assert self._buffers is not None
        keys, values = self._buffers
        outputs = []
        for slot in range(len(query)):
            kept, fed = self._kept[slot], self.span.ends[slot] + 1
            grouped = query[slot].view(1, len(kept), -1, query.shape[-1])
            for head, start in enumerate(self._starts_of(slot)):
                run = slice(start, start + kept[head] + fed)
                outputs.append(
                    F.scaled_dot_product_attention(
                        grouped[:, head : head + 1], keys[None, None, slot, run], values[None, None, slot, run],
                        scale=scaling,
                    )
                )  # fmt: skip
        return torch.cat(outputs, dim=1).view(len(query), 1, query.shape[1], -1)
