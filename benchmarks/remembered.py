"""Scorers for benchmarks that compare several on the same reading of a question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftapprox_integrations.results import Span
from draftapprox_integrations.specpc.scoring.scorer import AttentionScorer, TokenScores
from draftapprox_integrations.specpc.text import Passage, Sentence

Heads = tuple[list[Tensor], list[list[Span]], int]


class Remembered(AttentionScorer):
    """An attention scorer that lets its draft read each question once."""

    def __init__(self, attention: AttentionScorer):
        super().__init__(attention.reduction)
        self.attention, self.kind = attention, attention.kind
        self._known: dict[tuple[object, ...], Heads] = {}

    def score_heads(self, query: str, passages: Sequence[Passage]) -> Heads:
        """As that of `attention`."""
        key = (query, *((one.text, one.title) for one in passages))
        if key not in self._known:
            self._known[key] = self.attention.score_heads(query, passages)
        return self._known[key]

    def score_tokens(self, query: str, passages: Sequence[Passage]) -> TokenScores:
        """The mean over heads."""
        heads, spans, tokens_read = self.score_heads(query, passages)
        return TokenScores([rows.mean(dim=0) for rows in heads], spans, tokens_read)


class Chance:
    """A scorer that returns random numbers."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
        """Per passage float32 [sentences]."""
        return [torch.rand(len(group), generator=self.generator) for group in sentences]
