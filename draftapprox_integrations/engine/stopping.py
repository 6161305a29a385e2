"""Ends of a generation beside the end-of-sequence token: length, stop strings, NaN, a reader who left; row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ..errors import ScoringError
from .requests import Request

_TAIL = 16  # tokens beyond a stop string's length that are decoded with it: its first token may begin before it

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Row:
    """What one request of a batch has got so far.

    Attributes:
        request: The request.
        token_ids: The new ids, up to its own end; a batch may run on for other rows.
        finish_reason: Why it ended, or None while it runs.
        error: What went wrong with this row alone.
    """

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: ScoringError | None = None


class BatchStoppingCriteria(StoppingCriteria):
    """Follows a batch token by token: hands each row its own, and ends rows one by one.

    Args:
        requests: One per row.
        tokenizer: Needed where a request has stop strings.
        ends: Ids that end a sequence.
        also: Criteria of the caller, asked for every row.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tokenizer: PreTrainedTokenizerBase | None,
        ends: Sequence[int],
        also: Sequence[StoppingCriteria] = (),
    ):
        self.rows = [Row(request) for request in requests]
        self._tokenizer, self._ends = tokenizer, set(ends)
        self._also = StoppingCriteriaList(also)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Bool [batch]: rows that are done."""
        wanted = self._also(input_ids, scores, **options).tolist() if self._also else [False] * len(self.rows)
        for row, token, stop in zip(self.rows, input_ids[:, -1].tolist(), wanted, strict=True):
            if row.finish_reason is None:
                self._advance(row, token, stop)
        done = [row.finish_reason is not None for row in self.rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _advance(self, row: Row, token: int, stop: bool) -> None:
        request = row.request
        if request.cancelled.is_set() or row.error is not None:
            row.finish_reason = "cancelled"
            return
        row.token_ids.append(token)
        if token in self._ends or stop or self._has_stop_string(row):
            row.finish_reason = "stop"
        elif len(row.token_ids) >= request.max_new_tokens:
            row.finish_reason = "length"
        if request.on_token is not None:
            request.on_token(token)

    def _has_stop_string(self, row: Row) -> bool:
        stops = row.request.stops
        if not stops or self._tokenizer is None:
            return False
        tail = row.token_ids[-max(len(stop.encode()) for stop in stops) - _TAIL :]
        text = self._tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in stops)


class CatchNan(LogitsProcessor):
    """A row with NaN logits gets an error instead of an arbitrary token; the other rows go on."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, with zeros in the rows that held NaN."""
        bad = torch.isnan(scores).any(dim=-1)
        if not bad.any():
            return scores
        for row, is_bad in zip(self._rows, bad.tolist(), strict=True):
            if is_bad and row.finish_reason is None:
                row.error = ScoringError(
                    "the target model's logits are NaN. Load it with dtype='float32', or check its weights."
                )
        return scores.masked_fill(bad[:, None], 0.0)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min([place for stop in stops if (place := text.find(stop)) >= 0], default=len(text))]
