"""The guess of the answer, in the target's vocabulary (paper section 4.1): by a draft, or by the target itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..config import SpecPCConfig
from ..errors import InvalidInputError
from ..models.loading import LoadedModel, cut_after_end, end_ids, pad_left
from ..specpc.compressor import SpecPC

# What the target reads when it drafts for itself: enough to guess well, little enough to be worth it.
SELF_SHARE, SELF_LEAST = 4, 256


class StopAll(StoppingCriteria):
    """Ends every row once `interrupted()`."""

    def __init__(self, interrupted: Callable[[], bool]):
        self._interrupted = interrupted

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Bool [batch]."""
        return torch.full((input_ids.shape[0],), self._interrupted(), dtype=torch.bool, device=input_ids.device)


class DraftLookahead:
    """Lets `draft` guess what `target` will write.

    Where both share a vocabulary ids pass unchanged; else the prompt goes over as text and so does the guess.

    Raises:
        InvalidInputError: the vocabularies differ and one of the two has no tokenizer.
    """

    def __init__(self, target: LoadedModel, draft: LoadedModel):
        self._target, self._draft = target, draft
        self.same_vocabulary = draft is target or same_vocabulary(target, draft)
        if not self.same_vocabulary:
            target.require_tokenizer()
            draft.require_tokenizer()

    def guess(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: int, interrupted: Callable[[], bool] = bool
    ) -> list[Tensor]:
        """Per row a LongTensor [at most `tokens` of the draft] in the target's vocabulary, end-of-sequence included.

        Args:
            input_ids, attention_mask: LongTensor [batch, tokens], padded on the left, in the target's vocabulary.
            tokens: how many the draft writes, greedily, whatever the target's sampling.
            interrupted: asked at every token; True ends the guess there.

        Raises:
            InvalidInputError: the prompt and the guess exceed the draft's window.
        """
        if self.same_vocabulary:
            return self._generate(input_ids, attention_mask, tokens, interrupted)
        target, draft = self._target.require_tokenizer(), self._draft.require_tokenizer()
        texts = [target.decode(row[keep.bool()]) for row, keep in zip(input_ids, attention_mask, strict=True)]
        ids, mask = pad_left([draft(text, add_special_tokens=False)["input_ids"] for text in texts])
        guesses = [
            draft.decode(row, skip_special_tokens=True) for row in self._generate(ids, mask, tokens, interrupted)
        ]
        return [torch.tensor(target(text, add_special_tokens=False)["input_ids"], dtype=torch.long) for text in guesses]

    def _generate(self, ids: Tensor, mask: Tensor, tokens: int, interrupted: Callable[[], bool]) -> list[Tensor]:
        draft = self._draft
        if ids.shape[1] + tokens > draft.context_window:
            raise InvalidInputError(
                f"the prompt has {ids.shape[1]} tokens for the draft {draft.name}, which reads at most "
                f"{draft.context_window} with {tokens} to write. Use a draft with a longer window, or lower "
                "lookahead_tokens (0 needs no draft)."
            )
        ends = end_ids(draft.model)
        # A config of its own: sampling settings and penalties of the draft's card are not part of the method.
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
        )
        config.repetition_penalty = 1.0
        with draft.lock, torch.inference_mode():
            out = draft.model.generate(  # type: ignore[operator]
                input_ids=ids.to(draft.device),
                attention_mask=mask.to(draft.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([StopAll(interrupted)]),
            )
        return [cut_after_end(row, ends) for row in out[:, ids.shape[1] :].cpu()]


class SelfLookahead:
    """Lets `target` guess what it will write, from a part of the prompt that SpecPC chose with its own attention.

    There is no second model to load. The guess costs one reading of the prompt, in pieces, and a short generation.
    """

    same_vocabulary = True

    def __init__(self, target: LoadedModel):
        self._target = target
        self._draft = DraftLookahead(target, target)

    def guess(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: int, interrupted: Callable[[], bool] = bool
    ) -> list[Tensor]:
        """Per row a LongTensor [at most `tokens`], from a quarter of the longest prompt, or 256 tokens."""
        capacity = max(SELF_LEAST, input_ids.shape[1] // SELF_SHARE)
        kept = SpecPC(self._target, SpecPCConfig(max_capacity_prompt=capacity)).select(input_ids, attention_mask)
        rows = [input_ids[row, keep].tolist() for row, keep in enumerate(kept.indices)]
        return self._draft.guess(*pad_left(rows), tokens, interrupted)


def same_vocabulary(target: LoadedModel, draft: LoadedModel) -> bool:
    """Whether token ids mean the same to both."""
    if target.tokenizer is None or draft.tokenizer is None:
        return target.vocabulary == draft.vocabulary
    return target.tokenizer is draft.tokenizer or target.tokenizer.get_vocab() == draft.tokenizer.get_vocab()
