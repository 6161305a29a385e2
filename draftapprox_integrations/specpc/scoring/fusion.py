"""Fuse several scorers into one score for each sentence.

A draft's attention knows meaning but is easily lost among passages that look alike. BM25 knows names and numbers but no
meaning. An embedder and the retriever each add something of both. Every part is brought to a common scale, and the sum
counts. Then comes a second look: new terms of the best sentence (the person who wrote the song) are searched for as
well, because the next piece of evidence often mentions them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text.segmentation import Passage, Sentence
from .bm25 import BM25Index, BM25Scorer, owners_of, with_titles
from .embedder import Embedder, EmbedderScorer
from .scorer import AttentionScorer, Scorer, SentenceScores, check_scores

# Weights beside the other parts' 1 (docs/LOG.md).
SECOND_LOOK = 0.8
RETRIEVER = 0.5


def standardize(values: Tensor) -> Tensor:
    """Shift and scale values [any] to mean 0 and standard deviation 1; all 0 where they are equal."""
    if len(values) < 2:
        return torch.zeros_like(values)
    values = values - values.mean()
    spread = values.std()
    return values / spread if float(spread) > 1e-9 else torch.zeros_like(values)


def standardize_log(values: Tensor) -> Tensor:
    """`standardize` the logarithms of positive values, for heavy-tailed scores such as attention."""
    return standardize(values.clamp(min=1e-9).log())


def unscaled(values: Tensor) -> Tensor:
    """`values`, for a part that brings its own scale."""
    return values


@dataclass(frozen=True)
class Part:
    """One scorer of a fusion.

    Attributes:
        scorer: The scorer.
        weight: Factor of its scaled scores.
        scale: Brings its scores float32 [all sentences] to the common scale.
    """

    scorer: Scorer
    weight: float = 1.0
    scale: Callable[[Tensor], Tensor] = standardize


class RetrieverScorer:
    """Gives every sentence its passage's retriever score, standardized over the passages.

    A passage without a score counts as the worst that has one; all 0 where no passage has one.
    """

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
        """Per passage float32 [sentences], all equal."""
        scores = [passage.retriever_score for passage in passages]
        known = [score for score in scores if score is not None and math.isfinite(score)]
        if not known:
            return [torch.zeros(len(group)) for group in sentences]
        filled = [min(known) if score is None or not math.isfinite(score) else float(score) for score in scores]
        values = standardize(torch.tensor(filled))
        return [value.expand(len(group)) for value, group in zip(values, sentences, strict=True)]


class FusionScorer:
    """Weighted sum of scorers on a common scale, with a second look, as probabilities.

    Args:
        parts: The scorers; a bare one is a `Part` of weight 1.
        second_look: Weight of the search for new terms of the best sentence; 0 for none.
    """

    def __init__(self, parts: Sequence[Scorer | Part], second_look: float = SECOND_LOOK):
        self.parts = [part if isinstance(part, Part) else Part(part) for part in parts]
        self.second_look = second_look

    @classmethod
    def of_draft(cls, attention: AttentionScorer, embedder: Embedder | None = None) -> FusionScorer:
        """The default of `SpecPC.compress`: attention, BM25, an embedder if there is one, and the retriever."""
        parts = [Part(attention, scale=standardize_log), Part(BM25Scorer())]
        if embedder is not None:
            parts.append(Part(EmbedderScorer(embedder)))
        return cls([*parts, Part(RetrieverScorer(), RETRIEVER, unscaled)])

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> SentenceScores:
        """Per passage float32 [sentences], positive, summing to 1 over all passages.

        Raises:
            InvalidInputError: a part did not return one finite number for each sentence.
        """
        sizes = [len(group) for group in sentences]
        total, tokens = torch.zeros(sum(sizes)), None
        if len(total) == 0:
            return SentenceScores(total.split(sizes))
        for part in self.parts:
            found = check_scores(part.scorer, part.scorer.score(query, passages, sentences), sentences)
            total = total + part.weight * part.scale(torch.cat(found))
            tokens = tokens or found.tokens
        if self.second_look and len(total) > 1:
            total = total + self.second_look * second_look(query, passages, sentences, total)
        return SentenceScores(torch.softmax(total, dim=0).split(sizes), tokens)


def second_look(
    query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]], scores: Tensor
) -> Tensor:
    """Standardized BM25 scores for the new terms of the best sentence; 0 for that sentence and its duplicates.

    Args:
        query: The query.
        passages, sentences: As for `Scorer.score`.
        scores: float32 [all sentences]; the highest is the best sentence.

    Returns:
        float32 [all sentences].
    """
    texts = with_titles(passages, sentences)
    index = BM25Index(texts, owners_of(sentences))
    best = int(scores.argmax())
    again = standardize(index.scores(index.new_terms(best, query)))
    again[[text == texts[best] for text in texts]] = 0.0  # it finds itself, which says nothing
    return again


def attention_of(scorer: Scorer) -> AttentionScorer | None:
    """The part of a scorer that runs a draft, if there is one."""
    if isinstance(scorer, AttentionScorer):
        return scorer
    if isinstance(scorer, FusionScorer):
        return next((found for part in scorer.parts if (found := attention_of(part.scorer)) is not None), None)
    return None
