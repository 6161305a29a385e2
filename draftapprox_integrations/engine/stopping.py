"""Per-row stopping criteria of a batch: end of sequence, stop strings, length, cancellation, NaN logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ..errors import ScoringError
from .answer_text import AnswerText
from .requests import Request

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Slot:
    """One row of the running batch.

    Attributes:
        request: The request that occupies the row.
        token_ids: Its new token ids, up to its own end; the batch may go on for other rows.
        finish_reason: Why it ended, or None while it runs.
        error: The error of this row alone.
        answer: Its text so far, where stop strings are looked for; None without any.
    """

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    answer: AnswerText | None = None

    @classmethod
    def of(cls, request: Request, tokenizer: PreTrainedTokenizerBase | None) -> Slot:
        """A slot for a request; the tokenizer is needed where it has stop strings."""
        has_strings = bool(request.stop_strings) and tokenizer is not None
        return cls(request, answer=AnswerText(tokenizer, request.stop_strings) if has_strings else None)  # type: ignore[arg-type]

    def append(self, token: int, ends: bool) -> None:
        """Add a token, decide whether it is the last, and hand it to the reader.

        Args:
            token: The new token.
            ends: Whether it ends the sequence, or a criterion of the caller's does.
        """
        request = self.request
        if request.cancelled.is_set() or self.error is not None:
            self.finish_reason = "cancelled"
            return
        self.token_ids.append(token)
        if self.answer is not None:
            self.answer.feed(token)
            ends = ends or self.answer.stop_position() is not None
        if ends:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= request.max_new_tokens:
            self.finish_reason = "length"
        if request.on_token is not None:
            request.on_token(token)

    def fail(self) -> None:
        """Give the request an error because its logits were NaN."""
        self.error = ScoringError(
            "the target model's logits are NaN. Load it with dtype='float32', or check its weights."
        )


class BatchStoppingCriteria(StoppingCriteria):
    """Stopping criterion that ends the rows of a batch one by one and collects their tokens.

    Args:
        requests: One per row.
        tokenizer: Needed for requests with stop strings.
        eos_token_ids: Ids that end a sequence.
        criteria: The caller's own criteria, applied to every row.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tokenizer: PreTrainedTokenizerBase | None,
        eos_token_ids: Sequence[int],
        criteria: Sequence[StoppingCriteria] = (),
    ):
        self.slots = [Slot.of(request, tokenizer) for request in requests]
        self._eos_token_ids = set(eos_token_ids)
        self._criteria = StoppingCriteriaList(criteria)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Bool [batch]: rows that have ended."""
        stopped = [False] * len(self.slots)
        if self._criteria:
            stopped = self._criteria(input_ids, scores, **options).tolist()
        for slot, token, stop in zip(self.slots, input_ids[:, -1].tolist(), stopped, strict=True):
            if slot.finish_reason is None:
                slot.append(token, stop or token in self._eos_token_ids)
        ended = [slot.finish_reason is not None for slot in self.slots]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class NanLogitsGuard(LogitsProcessor):
    """Logits processor that gives a row with NaN logits an error instead of an arbitrary token; other rows go on."""

    def __init__(self, slots: Sequence[Slot]):
        self._slots = slots

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, zero in rows that held NaN."""
        has_nan = torch.isnan(scores).any(dim=-1)
        if not has_nan.any():
            return scores
        for slot, is_nan in zip(self._slots, has_nan.tolist(), strict=True):
            if is_nan and slot.finish_reason is None:
                slot.fail()
        return scores.masked_fill(has_nan[:, None], 0.0)
