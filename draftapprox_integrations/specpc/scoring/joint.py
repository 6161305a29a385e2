"""The paper's scores on text: the draft reads all passages and the query in one prompt (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from ...config import SpecPCConfig
from ...errors import InvalidInputError
from ...models.attention import attention_view
from ...models.loading import ModelSpec, load_model
from ...models.locks import renewed_in_children
from ..text.segmentation import Passage
from .attention_scores import read_importance
from .prompt import PromptBuilder
from .reduction import mean_scores
from .scorer import AttentionScorer, Reduction, TokenScores

# Far more than a retriever returns: a text this long was passed by mistake, or to keep the draft busy for hours.
MOST_TOKENS = 262_144


@renewed_in_children
class JointAttentionScorer(AttentionScorer):
    """Scores by the attention of all heads, from the query and the template's tail to the passages before them.

    Args:
        draft: What `load_model` takes.
        config: `reduction_type`, `lookahead_tokens`, `starting_layer_index`, `weighted_query` and `prefill_chunk_size`
            are used.
        reduction: From token scores to sentence scores.

    Raises:
        UnsupportedModelError: the draft's attention cannot be observed.
    """

    def __init__(
        self, draft: ModelSpec = "default", config: SpecPCConfig | None = None, reduction: Reduction = mean_scores
    ):
        super().__init__(reduction)
        self.draft, self.config = load_model(draft), config or SpecPCConfig()
        self._view = attention_view(self.draft.model)

    @cached_property
    def prompts(self) -> PromptBuilder:
        """Builds the draft's prompts."""
        return PromptBuilder(self.draft)

    def score_tokens(self, query: str, passages: Sequence[Passage]) -> TokenScores:
        """Attention to each token. Passages that exceed the draft's context window are read in groups.

        Raises:
            InvalidInputError: the query alone fills the draft's context window, or there are more than `MOST_TOKENS`.
            ScoringError: a score is NaN or infinite.
        """
        encoded = self.prompts.encoder.encode([passage.text for passage in passages])
        total = sum(len(tokens.ids) for tokens in encoded)
        if total > MOST_TOKENS:
            raise InvalidInputError(
                f"the passages have {total:,} tokens; joint attention reads at most {MOST_TOKENS:,} for one query. "
                f"Retrieve fewer, or calibrate the draft: draftapprox calibrate --model {self.draft.name}"
            )
        headers = self.prompts.headers([passage.title for passage in passages])
        prompts = self.prompts.build(encoded, headers, query)
        scores = [torch.zeros(len(tokens.ids)) for tokens in encoded]
        for prompt in prompts:
            ids = torch.tensor([prompt.ids])
            with self.draft.lock:
                read = read_importance(
                    self._view, ids, torch.ones_like(ids), prompt.window, self.config, draft_tokens=False
                )
            for segment, start in prompt.positions:
                scores[segment.passage][segment.start : segment.stop] = read.scores[0][start : start + segment.tokens]
        return TokenScores(scores, [tokens.spans for tokens in encoded], sum(len(prompt.ids) for prompt in prompts))
