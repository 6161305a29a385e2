"""From what was kept of some passages to the result that users get."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..report.heatmap import Heatmap
from ..results import CompressedPassage, CompressionResult
from .budget import Order
from .scoring.scorer import SentenceScores
from .text.packing import Packed
from .text.ranking import Ranking
from .text.segmentation import Passage, Sentence


@dataclass
class Scored:
    """What was found out about some passages, where it was asked.

    Attributes:
        sentences: Per passage its units.
        scores: Their scores.
        ranking: Their order.
    """

    sentences: list[list[Sentence]]
    scores: SentenceScores
    ranking: Ranking


@dataclass
class Stopwatch:
    """Seconds of each step; a step that did not run took none."""

    started: float = field(default_factory=time.perf_counter)
    ends: dict[str, float] = field(default_factory=dict)

    def done(self, step: str) -> None:
        """Note that a step ends now."""
        self.ends[step] = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds of "tokenize", "score", "select" and "total"; what is not done ends now."""
        now, before, found = time.perf_counter(), self.started, {}
        for step in ("tokenize", "score", "select"):
            end = self.ends.get(step, now)
            found[step], before = end - before, end
        return found | {"total": now - self.started}


def whole(items: Sequence[Passage], tokens: list[int]) -> Packed:
    """All of some passages, of so many tokens."""
    texts = [item.text for item in items]
    return Packed([[(0, len(text))] if text else [] for text in texts], texts, tokens)


def assemble(
    query: str,
    items: Sequence[Passage],
    tokens: list[int],
    packed: Packed,
    budget: int,
    names: tuple[str, str],
    watch: Stopwatch,
    scored: Scored | None = None,
    order: Order = "input",
) -> CompressionResult:
    """The result of a compression.

    Args:
        query: The query.
        items: The passages.
        tokens: Their tokens.
        packed: What was kept of them.
        budget: Most tokens that could be kept.
        names: Of the tokenizer that counted, and of the draft.
        watch: Seconds of the steps.
        scored: None if everything was kept without being scored.
        order: Order of the passages in the result.
    """
    scores, read = [math.nan] * len(items), 0
    heat: list[list[tuple[int, int, float]]] = [[] for _ in items]
    if scored is not None:
        scores, heat = scored.ranking.passage_scores, scored.scores.heat(scored.sentences)
        read = scored.scores.tokens.tokens_read if scored.scores.tokens is not None else 0
    titles, numbers = [item.title for item in items], range(len(items))
    columns = (packed.texts, packed.spans, scores, tokens, packed.tokens, heat, titles, numbers)
    passages = [CompressedPassage(item.text, *row) for item, *row in zip(items, *columns, strict=True)]
    if order == "relevance":
        passages.sort(key=lambda passage: -passage.score)
    return CompressionResult(
        passages=passages,
        query=query,
        tokens_before=sum(tokens),
        tokens_after=packed.total,
        budget=budget,
        tokenizer=names[0],
        timings=watch.seconds(),
        draft=names[1],
        draft_tokens=read,
        renderer=Heatmap(),
    )
