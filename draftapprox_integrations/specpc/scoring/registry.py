"""Scorers that `SpecPC` knows by name. A new one is a file beside this one and an entry in `SCORERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...config import CompressionConfig, SpecPCConfig
from ...errors import InvalidInputError
from ...models.loading import LoadedModel
from ..store.passage_store import PassageStore, open_store
from .embedder import Embedder
from .fusion import FusionScorer
from .heads import HeadSet, find_heads, require_heads
from .joint import JointAttentionScorer
from .per_passage import CalibratedHeadsScorer
from .reduction import PooledMax, mean_scores
from .relevance import RelevanceModels, RelevanceScorer
from .scorer import AttentionScorer, Reduction, Scorer

ScorerName = Literal["fused", "heads", "joint"]
ScorerSpec: TypeAlias = "ScorerName | Scorer"

# Fields of `SpecPCConfig` that take part in the joint attention, and in scores of words and tokens.
_JOINT_FIELDS = {
    "reduction_type", "lookahead_tokens", "starting_layer_index", "weighted_query", "prefill_chunk_size",
}  # fmt: skip
_UNIT_FIELDS = {
    "sentence": set(),
    "word": {"pool_type", "kernel_size"},
    "token": {"pool_type", "kernel_size", "neighbor_tokens"},
}


@dataclass(frozen=True)
class ScorerSettings:
    """Everything a named scorer may be built from; as in `SpecPC`, None where not given."""

    draft: LoadedModel
    config: SpecPCConfig
    compression: CompressionConfig
    store: PassageStore | None = None
    embedder: Embedder | None = None
    heads: HeadSet | None = None

    def reduction(self) -> Reduction:
        """From token scores to scores of the granularity's units."""
        if self.compression.granularity == "sentence":
            return mean_scores
        return PooledMax(self.config.pool_type, self.config.kernel_size)

    def refuse_unused(self, scored_by: str, *, config: set[str], arguments: set[str]) -> None:
        """Refuse settings that can have no effect.

        Args:
            scored_by: How sentences are scored, for the message.
            config: Fields of `SpecPCConfig` that take part.
            arguments: Names among "store", "embedder", "heads" that take part.

        Raises:
            InvalidInputError: names the settings.
        """
        used = config | _UNIT_FIELDS[self.compression.granularity] | {"max_capacity_prompt"}
        unused = [f"SpecPCConfig.{name}" for name in self.config.changed() if name not in used]
        given = {"store": self.store, "embedder": self.embedder, "heads": self.heads}
        unused += [name for name, value in given.items() if value is not None and name not in arguments]
        if unused:
            raise InvalidInputError(
                f"{', '.join(unused)}: no effect on compress with granularity "
                f"{self.compression.granularity!r} where sentences are scored by {scored_by}. Leave it at its default, "
                'or choose another scorer: "joint" uses the settings of SpecPCConfig, "heads" a store, "fused" an '
                "embedder."
            )


def joint(settings: ScorerSettings) -> Scorer:
    """The paper's attention of all heads, passages read together."""
    settings.refuse_unused("the joint attention of all heads", config=_JOINT_FIELDS, arguments=set())
    return _joint(settings)


def heads(settings: ScorerSettings) -> Scorer:
    """The attention of the draft's calibrated heads, passages read one by one and stored."""
    settings.refuse_unused("calibrated heads", config=set(), arguments={"store", "heads"})
    return _heads(settings, settings.heads or require_heads(settings.draft))


def fused(settings: ScorerSettings) -> Scorer:
    """A probability from attention, words, an embedder if there is one, and the retriever; tokens by attention alone.

    The attention is that of calibrated heads, or the joint one for a draft that was never calibrated.
    """
    calibrated = settings.heads or find_heads(settings.draft.model)
    attention: AttentionScorer
    models = None
    by_sentence = settings.compression.granularity == "sentence"
    extra = {"embedder"} if by_sentence else set()
    if calibrated is None:
        name = settings.draft.name
        how = f"joint attention, as {name} was never calibrated (draftapprox calibrate --model {name})"
        settings.refuse_unused(how, config=_JOINT_FIELDS, arguments=extra)
        attention = _joint(settings)
    else:
        settings.refuse_unused("calibrated heads", config=set(), arguments={"store", "heads"} | extra)
        attention = _heads(settings, calibrated)
        models = None if calibrated.relevance is None else RelevanceModels.of_content(calibrated.relevance)
    return RelevanceScorer(attention, settings.embedder, models) if by_sentence else attention


SCORERS: dict[str, Callable[[ScorerSettings], Scorer]] = {"fused": fused, "heads": heads, "joint": joint}


def check_scorer(scorer: object) -> None:
    """Raises:
    InvalidInputError: neither a known name nor an object with a `score` method.
    """
    known = scorer in SCORERS if isinstance(scorer, str) else isinstance(scorer, Scorer)
    if not known or isinstance(scorer, type):
        raise InvalidInputError(
            f"scorer must be one of {', '.join(map(repr, SCORERS))}, or an object with "
            f"score(query, passages, sentences); got {scorer!r}"
        )


def build_scorer(scorer: ScorerSpec, settings: ScorerSettings) -> Scorer:
    """The scorer of a name, or the given object.

    Raises:
        InvalidInputError: a setting that can have no effect; "heads" with a draft that was never calibrated.
    """
    if isinstance(scorer, str):
        return SCORERS[scorer](settings)
    settings.refuse_unused(f"{type(scorer).__name__}, an object of yours", config=set(), arguments=set())
    return scorer


def _joint(settings: ScorerSettings) -> JointAttentionScorer:
    return JointAttentionScorer(settings.draft, settings.config, settings.reduction())


def _heads(settings: ScorerSettings, calibrated: HeadSet) -> CalibratedHeadsScorer:
    store = open_store(settings.store)
    return CalibratedHeadsScorer(settings.draft, calibrated, store=store, reduction=settings.reduction())


def attention_of(scorer: Scorer) -> AttentionScorer | None:
    """The part of a scorer that runs a draft, if there is one."""
    if isinstance(scorer, AttentionScorer):
        return scorer
    if isinstance(scorer, RelevanceScorer):
        return scorer.attention
    if isinstance(scorer, FusionScorer):
        return next((found for part in scorer.parts if (found := attention_of(part.scorer)) is not None), None)
    return None
