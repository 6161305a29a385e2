"""The probability that a sentence is evidence: a small model over signals, and the default scorer made of it.

Two looks. The first is linear and sees each sentence by itself; from its scores follow the signals of the second, a
network with one hidden layer. Its output becomes a probability by a scale and a shift that were fitted on other
questions. All of it is about a thousand numbers in a JSON file, fitted by `benchmarks.fit_relevance` and by
`draftapprox calibrate --data`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ..text.segmentation import Passage, Sentence
from .embedder import Embedder, EmbedderScorer, check_embedder
from .scorer import AttentionScorer, Scorer, SentenceScores, TokenScores, check_finite, check_scores
from .signals import Signals, second_names

_PACKAGED = Path(__file__).parent / "calibrated" / "relevance.json"
_FORMAT = 2
_CLAMP = 4.0  # standard deviations beyond which a signal says no more


@dataclass(frozen=True)
class Network:
    """A linear model, or one with a hidden layer beside it, over signals.

    Attributes:
        shift, scale: float32 [signals]: mean and standard deviation where it was fitted.
        weight: float32 [signals].
        hidden: float32 [units, signals + 1], the last column a bias; [0, ...] for a linear model.
        out: float32 [units].
    """

    shift: Tensor
    scale: Tensor
    weight: Tensor
    hidden: Tensor
    out: Tensor

    def __call__(self, signals: Tensor) -> Tensor:
        """float32 [...] from signals [..., signals]."""
        x = ((signals - self.shift) / self.scale).clamp(-_CLAMP, _CLAMP)
        units = torch.tanh(x @ self.hidden[:, :-1].T + self.hidden[:, -1])
        return x @ self.weight + units @ self.out

    def to_lists(self) -> dict[str, Any]:
        """JSON-ready, rounded to four digits."""
        return {name: _rounded(value.tolist()) for name, value in vars(self).items()}

    @classmethod
    def of_lists(cls, lists: Mapping[str, Any]) -> Network:
        """From `to_lists`."""
        made = {name: torch.tensor(lists[name], dtype=torch.float32) for name in cls.__dataclass_fields__}
        made["hidden"] = made["hidden"].reshape(-1, len(made["weight"]) + 1)
        return cls(**made)


@dataclass(frozen=True)
class RelevanceModel:
    """Two looks over signals of certain names.

    Attributes:
        names, second_names: Names of the signals that each look adds.
        first, second: The two looks.
        temperature, bias: probability = sigmoid(second / temperature + bias).
    """

    names: tuple[str, ...]
    second_names: tuple[str, ...]
    first: Network
    second: Network
    temperature: float = 1.0
    bias: float = 0.0

    def logits(self, signals: Signals) -> Tensor:
        """float32 [all sentences]; before temperature and bias."""
        return self.second(torch.cat([signals.first, signals.second(self.first(signals.first))], dim=1))

    def probabilities(self, signals: Signals) -> Tensor:
        """float32 [all sentences], in (0, 1)."""
        return torch.sigmoid(self.logits(signals) / self.temperature + self.bias)

    def calibrated(self, temperature: float, bias: float) -> RelevanceModel:
        """The same order, other probabilities."""
        return replace(self, temperature=temperature, bias=bias)


class RelevanceModels:
    """Models by what they know: the kind of attention, with an embedder, with another scorer's scores, without both.

    Args:
        models: By (attention, semantic): "heads" or "joint"; "none", "embedder" or "scorer".
    """

    def __init__(self, models: Mapping[tuple[str, str], RelevanceModel]):
        self.models = dict(models)

    def content(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": _FORMAT,
            "models": [
                {
                    "attention": attention,
                    "semantic": semantic,
                    "names": list(model.names),
                    "second_names": list(model.second_names),
                    "temperature": round(model.temperature, 4),
                    "bias": round(model.bias, 4),
                    "first": model.first.to_lists(),
                    "second": model.second.to_lists(),
                }
                for (attention, semantic), model in self.models.items()
            ],
        }

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> RelevanceModels:
        """From `content`.

        Raises:
            InvalidInputError: it holds no models, or those of other signals.
        """
        try:
            rows = content["models"]
            if content["format"] != _FORMAT or any(
                row["second_names"] != [*second_names(row["names"])] for row in rows
            ):
                raise ValueError("written by another version")
            return cls(
                {
                    (row["attention"], row["semantic"]): RelevanceModel(
                        tuple(row["names"]),
                        tuple(row["second_names"]),
                        Network.of_lists(row["first"]),
                        Network.of_lists(row["second"]),
                        float(row["temperature"]),
                        float(row["bias"]),
                    )
                    for row in rows
                }
            )
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InvalidInputError(
                f"these relevance models cannot be used ({error}). Make them again: draftapprox calibrate --data"
            ) from error

    @staticmethod
    @cache
    def packaged() -> RelevanceModels:
        """The models that come with the package."""
        return RelevanceModels.of_content(json.loads(_PACKAGED.read_text(encoding="utf-8")))

    def replaced(self, attention: str, semantic: str, model: RelevanceModel) -> RelevanceModels:
        """With another model for one kind of attention and similarity."""
        return RelevanceModels({**self.models, (attention, semantic): model})


class RelevanceScorer:
    """Scores each sentence by the probability that it is evidence for the query.

    Args:
        attention: Lets a draft read the passages.
        embedder: An embedder, or another scorer, that takes part; None for none.
        models: The models to use; None: those of the package.

    Raises:
        InvalidInputError: `embedder` can neither embed nor score.
    """

    def __init__(
        self,
        attention: AttentionScorer,
        embedder: Embedder | Scorer | None = None,
        models: RelevanceModels | None = None,
    ):
        self.attention, self.embedder = attention, check_embedder(embedder)
        self._models = models

    @property
    def models(self) -> RelevanceModels:
        """The models to choose from."""
        return self._models or RelevanceModels.packaged()

    @property
    def semantic(self) -> str:
        """What takes part beside attention and words: "none", "embedder" or "scorer"."""
        return "none" if self.embedder is None else "scorer" if isinstance(self.embedder, Scorer) else "embedder"

    @property
    def model(self) -> RelevanceModel:
        """The model in use."""
        return self.models.models[self.attention.kind, self.semantic]

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> SentenceScores:
        """Per passage float32 [sentences], in (0, 1).

        Raises:
            InvalidInputError: as the draft's scorer and the embedder.
            ScoringError: a score of the draft is NaN or infinite.
        """
        signals, tokens = self.signals(query, passages, sentences)
        found = torch.zeros(0) if signals is None else self.model.probabilities(signals)
        return SentenceScores(found.split([len(group) for group in sentences]), tokens, are_probabilities=True)

    def signals(
        self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]
    ) -> tuple[Signals | None, TokenScores]:
        """The signals, None without a sentence, and the draft's token scores: the mean over its heads."""
        heads, spans, tokens_read = self.attention.score_heads(query, passages)
        tokens = TokenScores([rows.mean(dim=0) for rows in heads], spans, tokens_read)
        for row in tokens.scores:
            check_finite(row)
        if not any(sentences):
            return None, tokens
        similarity = self._similarity(query, passages, sentences)
        is_cosine = self.semantic == "embedder"
        return Signals(query, passages, sentences, heads, spans, similarity, is_cosine), tokens

    def _similarity(
        self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]
    ) -> Tensor | None:
        if self.embedder is None:
            return None
        scorer = self.embedder if isinstance(self.embedder, Scorer) else EmbedderScorer(self.embedder)
        return torch.cat(list(check_scores(scorer, scorer.score(query, passages, sentences), sentences)))


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else round(value, 4)
