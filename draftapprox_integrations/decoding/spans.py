"""Which entries of each slot's buffers a new token attends to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Span:
    """The entries that count, for layers that hold the same tokens of each slot.

    A slot's entries are consecutive tokens in order; the next token is written at entry `ends[slot]`.

    Attributes:
        window: Number of tokens that a token attends to, itself included; 0 for all.
        chunked: The window begins at multiples of `window` in the sequence (Llama 4), not `window` tokens back.
        firsts: Per slot the first entry that is not padding.
        ends: Per slot the number of entries that are filled.
        capacity: Entries of the buffers.
        origin: Index in the padded sequence of entry 0, where a whole batch was adopted.
    """

    window: int = 0
    chunked: bool = False
    firsts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    capacity: int = 0
    origin: int = 0

    def resize(self, slots: int) -> None:
        """Change the number of slots; new ones are empty."""
        for counts in (self.firsts, self.ends):
            counts[:] = (counts + [0] * slots)[:slots]

    def lower(self, slot: int, tokens: int) -> int:
        """First entry that the next token of a slot attends to, where its sequence has `tokens` tokens so far."""
        end = self.ends[slot]
        if not self.window:
            return self.firsts[slot]
        back = tokens % self.window if self.chunked else self.window - 1
        return max(self.firsts[slot], end - back)


def additive_mask(outside: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, entries] for bool [rows, entries]: -inf where an entry does not count, else 0."""
    return torch.zeros(outside.shape, device=outside.device, dtype=dtype).masked_fill_(outside, -torch.inf)[
        :, None, None
    ]


@dataclass(frozen=True)
class SpanStep:
    """What one step needs to know of a span.

    Attributes:
        start, stop: Entries of the buffers that are read.
        entry: Where all rows write; None where rows write at `index`.
        index: LongTensor [rows, 1, 1, 1], or None with `entry`.
        bias: [rows, 1, 1, stop - start], 0 or -inf, added to the logits; None where everything counts.
        lowers, lengths: LongTensor [rows]: first entry and number of entries that count, for kernels; None in a step
            whose shapes follow the rows.
    """

    start: int
    stop: int
    entry: int | None
    index: Tensor | None
    bias: Tensor | None
    lowers: Tensor | None = None
    lengths: Tensor | None = None


def plan_step(span: Span, tokens: list[int], rows: int, device: torch.device, dtype: torch.dtype) -> SpanStep:
    """Plan a step whose shapes follow the rows: reads up to the newest token, masks only where rows differ.

    Args:
        span: The span.
        tokens: Per slot the tokens of the sequence so far.
        rows: Number of slots that step, the first ones.
        device, dtype: Of the layers' keys.
    """
    ends = span.ends[:rows]
    lowers = [span.lower(slot, tokens[slot]) for slot in range(rows)]
    start, stop = min(lowers), max(ends) + 1
    same_end = min(ends) == max(ends)
    if same_end and max(lowers) == start:
        return SpanStep(start, stop, ends[0], None, None)
    bounds = torch.tensor([lowers, ends], device=device)
    entries = torch.arange(start, stop, device=device)
    outside = (entries < bounds[0, :, None]) | (entries > bounds[1, :, None])
    index = bounds[1].view(-1, 1, 1, 1)
    return SpanStep(start, stop, ends[0] if same_end else None, index, additive_mask(outside, dtype))


class StaticSpan:
    """A span's counts in tensors, for a step with fixed shapes that is recorded once and replayed.

    Args:
        span: The span, whose counts are copied by `load`.
        slots: Number of slots.
    """

    def __init__(self, span: Span, slots: int, device: torch.device, dtype: torch.dtype):
        self.span, self._dtype = span, dtype
        self.counts = torch.zeros(2, slots, dtype=torch.long, device=device)  # firsts and ends
        self._entries = torch.arange(span.capacity, device=device)

    def load(self) -> None:
        """Copy the span's counts into the tensors."""
        self.counts.copy_(torch.tensor([self.span.firsts, self.span.ends]))

    def plan(self, tokens: Tensor, rows: int) -> SpanStep:
        """Plan a step over whole buffers from the counts in the tensors; `tokens` LongTensor [slots]."""
        firsts, ends = self.counts[:, :rows]
        ends = ends.clamp(max=self.span.capacity - 1)  # slots without a request may stand anywhere
        lowers = firsts
        if window := self.span.window:
            back = tokens[:rows] % window if self.span.chunked else window - 1
            lowers = torch.maximum(firsts, ends - back)
        outside = (self._entries < lowers[:, None]) | (self._entries > ends[:, None])
        bias = additive_mask(outside, self._dtype)
        return SpanStep(0, self.span.capacity, None, ends.view(-1, 1, 1, 1), bias, lowers, ends - lowers + 1)
