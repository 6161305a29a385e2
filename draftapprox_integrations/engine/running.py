"""The running batch: requests join and leave between steps, each at its own place in its own answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..decoding.cache import SlotCache, chunked_layers
from ..decoding.step import Step
from .batches import PrefilledBatch, PreparedBatch
from .pipeline import Pipeline
from .requests import Request
from .sampling import Sampler
from .stopping import Slot


@dataclass(eq=False)
class Row:
    """One request of the running batch.

    Attributes:
        slot: The request, its tokens so far and why it ended.
        sampler: Chooses its tokens.
        prepared: What was done before decoding, and its row there.
        position: Position of the token that is fed next.
        token: That token.
        started: When decoding began, in seconds of `time.perf_counter`.
        was_parked: Whether it has made place for another.
    """

    slot: Slot
    sampler: Sampler
    prepared: tuple[PreparedBatch, int]
    position: int
    token: int
    started: float
    was_parked: bool = False

    @property
    def remaining(self) -> int:
        """Most tokens that it has yet to write."""
        return self.slot.request.max_new_tokens - len(self.slot.token_ids)

    def append(self, token: int) -> None:
        """Add the token that was chosen; the row may end with it."""
        slot, sampler = self.slot, self.sampler
        ends = False
        if slot.error is None:
            sampler.append(token)
            try:
                ends = token in sampler.eos or sampler.ends()
            except Exception as error:  # a criterion of the caller's
                slot.error = error
        slot.append(token, ends)
        self.token, self.position = token, self.position + 1


class RunningBatch:
    """Rows that decode together, one token each at a time.

    Args:
        pipeline: Its target answers.

    Attributes:
        rows: The rows, in the order of their slots.
        parked: A row that waits in a slot of its own while a short request has its place.
    """

    def __init__(self, pipeline: Pipeline):
        assert pipeline.view is not None
        self._target, self._view, self._bounded = pipeline.target, pipeline.view, pipeline.evicts
        self._make_slots = pipeline.make_slots
        self.rows: list[Row] = []
        self.parked: Row | None = None
        self._parked_slot = 0
        self._step: Step | None = None

    @property
    def keeps_buffers(self) -> bool:
        """Whether the cache stays when no row is left: where its size is bounded and steps were recorded over it."""
        return self._bounded and self._step is not None and self._step.is_recorded

    @property
    def can_repeat_step(self) -> bool:
        """Whether a step that failed changed nothing that the next one needs."""
        return self._step is not None and not self._step.cache.states()

    def admit(self, requests: Sequence[Request], batch: PrefilledBatch) -> list[Row]:
        """Add prefilled requests.

        Returns:
            Those that are finished already.
        """
        with self._target.lock, torch.inference_mode():
            lengths = batch.prepared.attention_mask.sum(dim=1).tolist()
            joined = [self._row(request, batch.prepared, index) for index, request in enumerate(requests)]
            if self._step is None:
                chunked = chunked_layers(self._target.model)
                self._step = Step(self._view, SlotCache(batch.cache, chunked, self._make_slots))
            cache, first = self._step.cache, len(self.rows)
            if cache.slots < first + len(joined):
                cache.resize(1 << (first + len(joined) - 1).bit_length())
            fed = [length - (batch.logits is None) for length in lengths]  # the last prompt token may be yet to feed
            cache.admit(range(first, first + len(joined)), batch.cache, fed)
            self.rows += joined
            if batch.logits is not None:
                self._choose(joined, batch.logits)
            return self._take_finished()

    def park(self) -> None:
        """Let the row that has most to write make place for a short request. Each row does so once."""
        assert self._step is not None
        assert self.parked is None
        candidates = [row for row in self.rows if not row.was_parked]
        row = max(candidates, key=lambda row: row.remaining)
        with self._target.lock, torch.inference_mode():
            cache, spare = self._step.cache, len(self.rows)
            if cache.slots <= spare:
                cache.resize(spare + 1)
            cache.move(self.rows.index(row), spare)
            self.parked, self._parked_slot, row.was_parked = row, spare, True
            self.drop([row])

    def resume(self) -> None:
        """Let the parked row go on."""
        assert self._step is not None
        assert self.parked is not None
        with self._target.lock, torch.inference_mode():
            if self._parked_slot != len(self.rows):
                self._step.cache.move(self._parked_slot, len(self.rows))
        self.rows.append(self.parked)
        self.parked = None

    @property
    def most_remaining(self) -> int:
        """Most tokens that a row which may be parked has yet to write; 0 where none may."""
        return max((row.remaining for row in self.rows if not row.was_parked), default=0)

    def _row(self, request: Request, batch: PreparedBatch, index: int) -> Row:
        kept = batch.attention_mask[index].bool()
        ids = batch.input_ids[index][kept]
        last = int(batch.attention_mask[index].sum()) - 1
        if batch.position_ids is not None:
            last = int(batch.position_ids[index, -1])
        sampler = Sampler(self._target, request, ids.to(self._target.device))
        slot = Slot.of(request, self._target.tokenizer)
        return Row(slot, sampler, (batch, index), last, int(ids[-1]), time.perf_counter())

    def step(self) -> list[Row]:
        """Decode one token of every row.

        Returns:
            The rows that are finished, which have left the batch.
        """
        assert self._step is not None
        with self._target.lock, torch.inference_mode():
            fed = torch.tensor([[row.token, row.position] for row in self.rows], device=self._step.device)
            logits = self._step(fed[:, :1], fed[:, 1:])
            self._choose(self.rows, logits)
            return self._take_finished()

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose the next token of each row from logits [rows, vocabulary]: the one point where the host waits."""
        is_nan = torch.isnan(logits).any(dim=-1)
        if all(row.sampler.takes_highest for row in rows):
            chosen = logits.argmax(-1)
        else:
            safe = logits.masked_fill(is_nan[:, None], 0.0)
            chosen = torch.stack([self._chosen(row, safe[index : index + 1]) for index, row in enumerate(rows)])
        for row, (token, bad) in zip(rows, torch.stack([chosen, is_nan.long()], dim=1).tolist(), strict=True):
            if bad:
                row.slot.fail()
            row.append(token)

    def _chosen(self, row: Row, logits: Tensor) -> Tensor:
        """The next token of a row, LongTensor []. A processor that fails ends its row, not its neighbours."""
        try:
            return row.sampler.choose(logits)[0]
        except Exception as error:
            row.slot.error = error
            return torch.zeros((), dtype=torch.long, device=logits.device)

    def _take_finished(self) -> list[Row]:
        """Remove the rows that have ended; the last rows move into their slots."""
        assert self._step is not None
        finished = [row for row in self.rows if row.slot.finish_reason is not None]
        self.drop(finished)
        return finished

    def discard(self, requests: Sequence[Request]) -> None:
        """Remove the rows of requests that failed while they joined."""
        if self._step is not None:
            self.drop([row for row in self.rows if any(row.slot.request is request for request in requests)])

    def drop(self, rows: Sequence[Row]) -> None:
        """Remove rows; the last ones move into their slots."""
        assert self._step is not None
        for row in rows:
            index, last = self.rows.index(row), self.rows.pop()
            if row is not last:
                self._step.cache.move(len(self.rows), index)
                self.rows[index] = last
        if not self.rows and self.parked is None and not self.keeps_buffers:
            self._step = None
