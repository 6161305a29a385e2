"""The KV cache of a running batch. Every slot (a row of the batch) has a sequence of its own length.

A layer's pairs of a slot are consecutive entries of a buffer: first what was kept of the prompt, then later tokens. A
step writes one entry per slot and reads the buffers in place; nothing is concatenated or copied. A slot can be filled,
moved and emptied between steps, whatever the other slots do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from ..errors import UnsupportedModelError
from ..models.attention import Attend
from .attend import attend_slots
from .buffered import RESERVE, BufferedLayer
from .slots import MakeSlots, SlotStorage, SpanSlots, StateSlots
from .spans import Span, SpanStep, StaticSpan, plan_step


def has_slots(model: PreTrainedModel) -> bool:
    """Whether the states of all of a model's layers can be stored in slots."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer)
    return all(type(layer) in kinds for layer in DynamicCache(config=model.config).layers)


def chunked_layers(model: PreTrainedModel) -> frozenset[int]:
    """Indices of the layers whose windows are chunks of the sequence."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return frozenset(index for index, kind in enumerate(kinds) if kind == "chunked_attention")


class NoSlotsError(UnsupportedModelError):
    """The states of a model's layers cannot be stored in slots."""


class SlotCache(Cache):
    """Cache of a running batch, and the observer that computes its attention.

    Args:
        source: A prefilled cache of the model, for the kinds of its layers.
        chunked: Indices of layers whose windows are chunks of the sequence.
        make_slots: Makes the slots of full-attention layers, where these are not plain keys and values.

    Attributes:
        tokens: Per slot the tokens of its sequence that were fed, evicted ones included.
        version: Changes when a buffer was replaced, so that what was recorded over it is void.

    Raises:
        NoSlotsError: a layer's states cannot be stored in slots.
    """

    def __init__(self, source: Cache, chunked: frozenset[int] = frozenset(), make_slots: MakeSlots | None = None):
        self._make_slots = make_slots
        self.tokens: list[int] = []
        self.version = 0
        self._spans: dict[Any, Span] = {}
        self._fed = Span()  # tokens after the prompt, for layers that store those apart
        self._static: dict[int, StaticSpan] | None = None
        self._static_tokens: Tensor | None = None
        super().__init__(layers=[self._slots_of(layer, index in chunked) for index, layer in enumerate(source.layers)])

    def _slots_of(self, layer: Any, chunked: bool) -> Any:
        window = int(getattr(layer, "sliding_window", 0) or 0)
        if isinstance(layer, DynamicLayer) and layer.keys is None:
            raise NoSlotsError(f"a layer of kind {type(layer).__name__} was not filled")
        if isinstance(layer, DynamicLayer) and not window and self._make_slots is not None:
            self._spans["fed"] = self._fed
            return self._make_slots(self._fed)
        if isinstance(layer, DummyLayer):
            return layer
        if type(layer) is LinearAttentionLayer:
            return StateSlots(layer.number_of_states)
        if isinstance(layer, DynamicLayer):
            assert layer.keys is not None
            key = (window, chunked, layer.keys.device, layer.keys.dtype)
            return SpanSlots(self._spans.setdefault(key, Span(window, chunked)))
        raise NoSlotsError(f"layers of kind {type(layer).__name__} have no slots in a running batch")

    # ------------------------------------------------------------------ slots

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.tokens)

    def resize(self, slots: int) -> None:
        """Change the number of slots; the first ones keep their pairs."""
        self.tokens = (self.tokens + [0] * slots)[:slots]
        for span in {id(span): span for span in (*self._spans.values(), self._fed)}.values():
            span.resize(slots)
        for layer in self.layers:
            if isinstance(layer, SlotStorage | StateSlots):
                layer.resize(slots)
        self._changed()

    def admit(self, slots: Sequence[int], source: Cache, tokens: Sequence[int]) -> None:
        """Copy the rows of a prefilled cache into slots; the cache is emptied on the way and of no use afterwards.

        Args:
            slots: Per row of `source` the index of its slot.
            source: The prefilled cache, padded on the left.
            tokens: Per row the tokens that `source` counts as holding, padding not included.
        """
        for slot, count in zip(slots, tokens, strict=True):
            self._fed.firsts[slot] = self._fed.ends[slot] = 0
            self.tokens[slot] = count
        for span in self._spans.values():
            needed = [
                layer.entries_for(states, count)
                for layer, states in zip(self.layers, source.layers, strict=True)
                if isinstance(layer, SlotStorage) and layer.span is span
                for count in tokens
            ]
            self._reserve(span, max(needed) + 1)
        for index, layer in enumerate(self.layers):
            states: Any = source.layers[index]
            for row, (slot, count) in enumerate(zip(slots, tokens, strict=True)):
                if isinstance(layer, StateSlots):
                    layer.admit_states(slot, states, row, self.slots)
                if isinstance(layer, SlotStorage):
                    layer.admit(slot, states, row, count)
            source.layers[index] = DummyLayer()
        self.load_counts()

    @classmethod
    def adopt(cls, source: Cache, tokens: Sequence[int], chunked: frozenset[int] = frozenset()) -> SlotCache:
        """Take over a whole prefilled batch, without a copy where its layers have spare room (`BufferedLayer`).

        Args:
            source: The prefilled cache, padded on the left; of no use afterwards.
            tokens: Per row its tokens without padding.
            chunked: As for the class.
        """
        cache = cls(source, chunked)
        cache.tokens = list(tokens)
        for span in cache._spans.values():
            span.resize(len(tokens))
        for index, layer in enumerate(cache.layers):
            states: Any = source.layers[index]
            if isinstance(layer, SpanSlots):
                count = states.keys.shape[2]
                buffers = states.take_buffers() if isinstance(states, BufferedLayer) else (states.keys, states.values)
                layer.span.ends[:] = [count] * len(tokens)
                layer.span.firsts[:] = [max(count - n, 0) for n in tokens]
                layer.span.origin = max(tokens) - count
                layer.buffers = buffers
                layer.span.capacity = max(layer.span.capacity, buffers[0].shape[2])
                source.layers[index] = DummyLayer()  # frees its pairs where they were copied
            elif isinstance(layer, StateSlots):
                for row in range(len(tokens)):
                    layer.admit_states(row, states, row, len(tokens))
        for layer in cache.layers:
            if isinstance(layer, SpanSlots):
                layer.reserve(layer.span.capacity)
        return cache

    def move(self, source: int, slot: int) -> None:
        """Copy one slot over another."""
        for layer in self.layers:
            if isinstance(layer, SlotStorage | StateSlots):
                layer.move(source, slot)
        self.tokens[slot] = self.tokens[source]
        for span in self._spans.values():
            span.firsts[slot], span.ends[slot] = span.firsts[source], span.ends[source]
        self.load_counts()

    def _reserve(self, span: Span, entries: int) -> None:
        """Make room for `entries` entries in each slot of a span, with some to spare."""
        if entries > span.capacity:
            span.capacity = -(-(entries + max(RESERVE, entries // 4)) // RESERVE) * RESERVE
            for layer in self.layers:
                if isinstance(layer, SlotStorage) and layer.span is span:
                    layer.reserve(span.capacity)
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._static = self._static_tokens = None

    # ------------------------------------------------------------------ a step

    def begin(self, rows: int) -> None:
        """Plan a step of the first `rows` slots, with shapes that follow them."""
        self._reserve_next(rows)
        self._begin_layers(rows, {id(span): self._plan(span, rows) for span in self._spans.values()})

    def begin_static(self, rows: int) -> None:
        """Plan a step from the counts in tensors; call `prepare_static` first."""
        assert self._static is not None
        assert self._static_tokens is not None
        self._begin_layers(rows, {key: static.plan(self._static_tokens, rows) for key, static in self._static.items()})

    def _plan(self, span: Span, rows: int) -> SpanStep:
        return plan_step(span, self.tokens, rows, *self._place(span))

    def _place(self, span: Span) -> tuple[torch.device, torch.dtype]:
        return next(layer.place() for layer in self.layers if isinstance(layer, SlotStorage) and layer.span is span)

    def _begin_layers(self, rows: int, steps: dict[int, SpanStep]) -> None:
        for layer in self.layers:
            if isinstance(layer, StateSlots):
                layer.begin(rows)
            if isinstance(layer, SlotStorage):
                layer.step = steps[id(layer.span)]

    def _reserve_next(self, rows: int) -> None:
        for span in self._spans.values():
            newest = max(span.ends[:rows], default=0)
            if newest >= span.capacity:
                self._reserve(span, newest + 1)

    def prepare_static(self, rows: int) -> None:
        """Have room for a step, and the counts in tensors that a recorded step reads and advances."""
        self._reserve_next(rows)
        if self._static is None:
            self._static = {id(span): StaticSpan(span, self.slots, *self._place(span)) for span in self._spans.values()}
            devices = {static.counts.device for static in self._static.values()}
            if len(devices) > 1:
                raise RuntimeError("its layers lie on several devices")
            (device,) = devices
            self._static_tokens = torch.zeros(self.slots, dtype=torch.long, device=device)
            self.load_counts()

    def states(self) -> list[Tensor]:
        """Tensors that a step changes even if it is not counted."""
        return [
            buffer for layer in self.layers if isinstance(layer, StateSlots) for buffer in layer.state_buffers.values()
        ]

    def load_counts(self) -> None:
        """Copy the counts of all slots into the tensors of a recorded step."""
        if self._static is not None and self._static_tokens is not None:
            for static in self._static.values():
                static.load()
            self._static_tokens.copy_(torch.tensor(self.tokens))

    def advance(self, rows: int) -> None:
        """Count the tokens of a step."""
        for slot in range(rows):
            self.tokens[slot] += 1
        for span in self._spans.values():
            for slot in range(rows):
                span.ends[slot] += 1

    def advance_static(self) -> None:
        """Count the tokens of a step in the tensors."""
        assert self._static is not None
        assert self._static_tokens is not None
        self._static_tokens += 1
        for static in self._static.values():
            static.counts[1] += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest sequence, evicted ones included."""
        return max(self.tokens, default=0)

    # ------------------------------------------------------------------ attention

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        """Attend to what counts of each slot; see `Observer.observe`."""
        owner = self.owner(layer, key)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend_slots(query, key, value, owner.step, scaling, owner.buffers if owner.current is key else None)

        return attend

    def first_token(self, layer: int, key: Tensor) -> int:
        """Index in an adopted batch's padded sequence of the first entry in `key`."""
        owner = self.owner(layer, key)
        assert owner.step is not None
        return owner.span.origin + owner.step.start

    def owner(self, layer: int, key: Tensor) -> SpanSlots:
        """The layer whose pairs `key` holds: another one where layers share them."""
        own = self.layers[layer]
        if isinstance(own, SpanSlots):
            return own
        for other in self.layers:
            if isinstance(other, SpanSlots) and other.current is key:
                return other
        raise UnsupportedModelError(f"layer {layer} attends to pairs that no layer keeps")
