"""What a scorer is: it gives every sentence of every passage a score for a query.

The smallest one, for `SpecPC("default", scorer=LengthScorer())`:

    class LengthScorer:
        def score(self, query, passages, sentences):
            return [torch.tensor([len(s.text) for s in group]) for group in sentences]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...errors import InvalidInputError, ScoringError
from ...results import Span
from ..text.segmentation import Passage, Sentence, assign_tokens


@runtime_checkable
class Scorer(Protocol):
    """Scores sentences for a query. Any object with this method can be the `scorer` of `SpecPC`."""

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> Sequence[Any]:
        """Score every sentence.

        Args:
            query: The query.
            passages: The passages.
            sentences: Per passage its sentences, in reading order; empty for blank text.

        Returns:
            Per passage float32 [sentences], finite; the higher, the better, comparable across passages.
        """


@dataclass(frozen=True)
class TokenScores:
    """A draft's attention to each token of each passage.

    Attributes:
        scores: Per passage float32 [tokens].
        spans: Per passage the character span of each token.
        tokens_read: Tokens that the draft processed for it.
    """

    scores: list[Tensor]
    spans: list[list[Span]]
    tokens_read: int


class SentenceScores(list[Tensor]):
    """Per passage float32 [sentences], and the token scores behind them where a draft has read the passages.

    Attributes:
        tokens: The draft's token scores, or None.
        are_probabilities: Whether a score is the probability that the sentence is evidence.
    """

    def __init__(self, scores: Iterable[Tensor], tokens: TokenScores | None = None, are_probabilities: bool = False):
        super().__init__(scores)
        self.tokens, self.are_probabilities = tokens, are_probabilities

    def heat(self, sentences: Sequence[Sequence[Sentence]]) -> list[list[tuple[int, int, float]]]:
        """Per passage (start, end, score >= 0) of each token the draft read; without a draft, of each sentence."""
        if self.tokens is not None:
            return [
                [(start, end, score) for (start, end), score in zip(spans, row.tolist(), strict=True)]
                for spans, row in zip(self.tokens.spans, self.tokens.scores, strict=True)
            ]
        lowest = min((float(row.min()) for row in self if len(row)), default=0.0)
        return [
            [(s.start, s.end, score - lowest) for s, score in zip(group, row.tolist(), strict=True)]
            for group, row in zip(sentences, self, strict=True)
        ]


# reduce(scores float32 [tokens], owners LongTensor [tokens] (-1 for none), units) -> float32 [units]
Reduction = Callable[[Tensor, Tensor, int], Tensor]


class AttentionScorer(ABC):
    """Scores sentences by a draft's attention to their tokens.

    Args:
        reduction: Turns token scores into scores of units, such as `mean_scores`.

    Attributes:
        kind: "heads", the attention of heads that find evidence, or "joint", of all heads.
    """

    kind: Literal["heads", "joint"] = "joint"

    def __init__(self, reduction: Reduction):
        self.reduction = reduction

    @abstractmethod
    def score_tokens(self, query: str, passages: Sequence[Passage]) -> TokenScores:
        """Let the draft read the passages with the query.

        Raises:
            InvalidInputError: the query alone fills the draft's context window.
            ScoringError: a score is NaN or infinite.
        """

    def score_heads(self, query: str, passages: Sequence[Passage]) -> tuple[list[Tensor], list[list[Span]], int]:
        """As `score_tokens`, each head by itself, where heads are told apart.

        Returns:
            Per passage float32 [heads, tokens]; per passage the character spans of its tokens; tokens read.
        """
        found = self.score_tokens(query, passages)
        return [row[None] for row in found.scores], found.spans, found.tokens_read

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> SentenceScores:
        """Per passage float32 [sentences]: the reduced scores of each sentence's tokens."""
        return self.reduce(self.score_tokens(query, passages), sentences)

    def reduce(self, tokens: TokenScores, sentences: Sequence[Sequence[Sentence]]) -> SentenceScores:
        """Per passage float32 [sentences], from the scores of their tokens."""
        found = []
        for scores, spans, group in zip(tokens.scores, tokens.spans, sentences, strict=True):
            owners = torch.tensor(assign_tokens([(s.start, s.end) for s in group], spans), dtype=torch.long)
            found.append(self.reduction(scores, owners, len(group)))
        return SentenceScores(found, tokens)


def check_scores(scorer: Scorer, found: Any, sentences: Sequence[Sequence[Sentence]]) -> SentenceScores:
    """The output of a scorer, as float32 tensors.

    Raises:
        InvalidInputError: it is not one finite number for each sentence of each passage.
    """
    name = type(scorer).__name__
    try:
        if len(found) != len(sentences):
            raise ValueError(f"{len(found)} tensors for {len(sentences)} passages")
        scores = [torch.as_tensor(row, dtype=torch.float32).cpu() for row in found]
        for index, (row, group) in enumerate(zip(scores, sentences, strict=True)):
            if row.shape != (len(group),):
                raise ValueError(f"shape {list(row.shape)} for the {len(group)} sentences of passage {index}")
            if not torch.isfinite(row).all():
                raise ValueError(f"a NaN or infinite score in passage {index}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name}.score must return one tensor of finite numbers for each passage, one for each of its sentences "
            f"({error})"
        ) from error
    return SentenceScores(scores, getattr(found, "tokens", None), getattr(found, "are_probabilities", False))


def check_finite(scores: Tensor) -> None:
    """Raises:
    ScoringError: a draft's score is NaN or infinite.
    """
    if not torch.isfinite(scores).all():
        raise ScoringError(
            "the draft model's attention is NaN or infinite. Load it with dtype='float32', "
            "or check its weights: load_model(..., dtype='float32')."
        )
