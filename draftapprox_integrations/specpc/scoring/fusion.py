"""Fuse scorers of your own choice by weights of your own: the weighted sum of their scores on a common scale.

Then comes a second look: new terms of the best sentence (the person who wrote the song) are searched for as well,
because the next piece of evidence often mentions them. The default of `SpecPC` is `relevance.RelevanceScorer`, whose
weights were fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..text.segmentation import Passage, Sentence
from .bm25 import BM25Index, owners_of, with_titles
from .scales import standardize, standardize_known
from .scorer import Scorer, SentenceScores, check_scores

SECOND_LOOK = 0.8  # weight beside the parts' 1 (docs/LOG.md)


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
        values = standardize_known([passage.retriever_score for passage in passages])
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
