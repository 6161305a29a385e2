"""Ends of a generation beside its length: stop strings, NaN, a reader who left."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from ..errors import ScoringError

_TAIL = 16  # tokens beyond a stop string's length that are decoded with it: its first token may begin before it


class StopOnText(StoppingCriteria):
    """A row is done when one of `stops` stands in what it wrote, even if split across tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_tokens: int):
        self._tokenizer, self._stops, self._prompt_tokens = tokenizer, stops, prompt_tokens
        self._tail = max(len(stop.encode()) for stop in stops) + _TAIL

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Bool [batch]."""
        tails = input_ids[:, max(self._prompt_tokens, input_ids.shape[1] - self._tail) :]
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in tails]
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class StopOnEvent(StoppingCriteria):
    """Ends every row once `event` is set."""

    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Bool [batch]."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


class RaiseOnNan(LogitsProcessor):
    """NaN logits are an error instead of an arbitrary token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` unchanged.

        Raises:
            ScoringError: a logit is NaN.
        """
        if torch.isnan(scores).any():
            raise ScoringError("the target model's logits are NaN. Load it with dtype='float32', or check its weights.")
        return scores


def cut_at_stop(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str, stops: Sequence[str]
) -> tuple[list[int], str, bool]:
    """The ids up to the one that completes the first stop string, the text before it, and whether there is one.

    A row that was done early goes on being padded while the others of its batch are not; this cuts that off.
    """
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return ids, text, False
    cut = text[: min(places)]
    low, high = 1, len(ids)
    while low < high:  # the shortest beginning that holds a whole stop string
        middle = (low + high) // 2
        shown = tokenizer.decode(ids[:middle], skip_special_tokens=True)
        if any(stop in shown for stop in stops):
            high = middle
        else:
            low = middle + 1
    return ids[:low], cut, True
