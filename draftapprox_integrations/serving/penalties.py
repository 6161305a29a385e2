"""OpenAI's penalties and biases of tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, tensor
from transformers import LogitsProcessor


class TokenPenalties(LogitsProcessor):
    """Logits processor that adds a bias to tokens, and takes penalties from those the answer has already.

    The first call tells the prompt from the answer, so use it for one row, once.

    Args:
        frequency: Penalty for each time that the answer has a token.
        presence: Penalty for a token that the answer has at all.
        bias: What is added to the logits, by token id.
    """

    def __init__(self, frequency: float, presence: float, bias: Mapping[int, float]):
        self._frequency, self._presence, self._bias = frequency, presence, dict(bias)
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adjust the scores.

        Args:
            input_ids: Long [1, tokens].
            scores: Float [1, vocabulary].
        """
        if self._prompt_tokens is None:
            self._prompt_tokens = input_ids.shape[1]
        scores = scores.clone()
        written, counts = input_ids[0, self._prompt_tokens :].unique(return_counts=True)
        scores[0, written] -= counts * self._frequency + self._presence
        if self._bias:
            ids = tensor(list(self._bias), device=scores.device)
            scores[0, ids] += tensor(list(self._bias.values()), dtype=scores.dtype, device=scores.device)
        return scores
