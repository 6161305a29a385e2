"""The paper's way of scoring text: the draft reads all passages and the question in one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...config import SpecPCConfig
from ...models.loading import LoadedModel
from ...models.tokenization import Encoded
from .attention_scores import read_importance
from .prompt import PromptBuilder


def read_together(
    draft: LoadedModel,
    view: PreTrainedModel,
    builder: PromptBuilder,
    config: SpecPCConfig,
    encoded: Sequence[Encoded],
    titles: Sequence[str | None],
    query: str,
) -> tuple[list[Tensor], int]:
    """Scores of each passage's tokens.

    Args:
        draft, view, builder: The model, its attention view, its prompts.
        config: As for `read_importance`; `window_size` None is everything after the context.
        encoded: The passages; where they do not fit the draft's window they are read in groups.
        titles: Per passage a title or None.
        query: The question.

    Returns:
        Per passage float32 [tokens]; how many tokens the draft has read.
    """
    prompts = builder.build(encoded, builder.headers(titles), query)
    scores = [torch.zeros(len(tokens.ids)) for tokens in encoded]
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        window = min(config.window_size or prompt.window, len(prompt.ids))
        with draft.lock:
            read = read_importance(
                view,
                ids,
                torch.ones_like(ids),
                window,
                config,
                draft_tokens=False,
            )
        found = read.scores[0]
        for segment, place in prompt.places:
            scores[segment.passage][segment.start : segment.stop] = found[place : place + segment.tokens]
    return scores, sum(len(prompt.ids) for prompt in prompts)
