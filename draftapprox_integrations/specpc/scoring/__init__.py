"""Scorers: how much each sentence matters for a query. One file per scorer; `registry.py` knows them by name."""

from .bm25 import BM25Scorer
from .embedder import EmbedderScorer
from .fusion import FusionScorer, Part, RetrieverScorer
from .joint import JointAttentionScorer
from .per_passage import CalibratedHeadsScorer
from .relevance import RelevanceScorer
from .scorer import Scorer

__all__ = [
    "BM25Scorer",
    "CalibratedHeadsScorer",
    "EmbedderScorer",
    "FusionScorer",
    "JointAttentionScorer",
    "Part",
    "RelevanceScorer",
    "RetrieverScorer",
    "Scorer",
]
