"""A model that says what it is told to: everything around its logits is real."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase


class Scripted(LogitsProcessor):
    """Logits processor that forces a text, then the end token. For one generation of one row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str):
        self._ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        self._place = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Allow the next token only."""
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._ids[min(self._place, len(self._ids) - 1)]] = 0
        self._place += 1
        return forced


def saying(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Any]:
    """Return options of a call that is answered with `text`."""
    return {"logits_processor": [Scripted(tokenizer, text)], "max_tokens": 400}
