"""SpecPC: a small draft model reads the context and the question; what it does not look at is dropped.

Galim et al., "Draft-based Approximate Inference for LLMs", ICLR 2026, section 4.2.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import SpecPCConfig
from ..errors import InvalidInputError
from ..models.attention import attention_view
from ..models.loading import LoadedModel, ModelSpec, load_model
from ..models.tokenization import Encoded, TokenCounter, TokenizerSpec
from ..report.heatmap import Heatmap
from ..results import CompressedPassage, CompressionResult, Selection
from .calibration.calibrate import calibrate
from .scoring.fusion import Embedder, check_embedder, fuse, titled
from .scoring.heads import HeadSet, check_heads, find_heads
from .scoring.joint import read_together
from .scoring.per_passage import PassageReader
from .scoring.prompt import PromptBuilder
from .store.passage_store import PassageStore, open_store
from .text.packing import Packed, Packer, Unit
from .text.ranking import Pattern, keep_within, rank_units
from .token_selection import choose_positions
from .validation import (
    as_config,
    budget_in_tokens,
    check_batch,
    check_budget,
    check_passages,
    check_protect,
    check_query,
    check_retriever_scores,
    check_titles,
)

OnEmpty = Literal["drop", "keep_best"]

logger = logging.getLogger(__name__)


class SpecPC:
    """Compress retrieved passages, or prompt ids, with a draft model's attention.

        pc = SpecPC("default")
        result = pc.compress(passages, "When was the bridge built?", max_tokens=512)
        print(result.passages[0].text)

    Safe to use from many threads: forward passes of one draft take turns.

    Args:
        draft: What `load_model` takes, or a `LoadedModel`.
        config: Settings (or a dict of them); the defaults suit text.
        tokenizer: Counts the tokens of `compress` budgets: usually the target model's. A transformers tokenizer,
            a folder or hub id of one, a tiktoken encoding, or a function from text to tokens or to their number.
            None counts with the draft's.
        store: Where passages that were read before are kept: a `PassageStore`, or the name of its file. None remembers
            some of them in memory (256 MiB), for as long as this object lives.
        embedder: Gives vectors of texts, for scoring "fused": a LangChain `Embeddings`, a LlamaIndex `BaseEmbedding`,
            or a function from texts to vectors. It is asked about each sentence.
        heads: Calibrated heads of the draft, or the file they were written to. None finds those saved for it.

    Raises:
        ModelLoadError: the draft or the tokenizer cannot be loaded.
        UnsupportedModelError: the draft's attention cannot be observed.
        InvalidInputError: `store`, `embedder` or `heads` cannot be used.
        ValueError: `config.starting_layer_index` names a layer that the draft does not have.
    """

    def __init__(
        self,
        draft: ModelSpec = "default",
        config: SpecPCConfig | None = None,
        *,
        tokenizer: TokenizerSpec | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
        embedder: Embedder | None = None,
        heads: HeadSet | str | os.PathLike[str] | None = None,
    ):
        self.draft: LoadedModel = load_model(draft)
        self.config = as_config(config) or SpecPCConfig()
        self._view = attention_view(self.draft.model)
        self.config.resolved_start(int(self._view.config.get_text_config().num_hidden_layers))
        self.tokenizer = tokenizer
        self.embedder = check_embedder(embedder)
        if embedder is not None and self.config.scoring != "fused":
            logger.warning('scoring="%s" does not ask the embedder; "fused" does', self.config.scoring)
        self.store = open_store(store)
        if heads is not None and not isinstance(heads, HeadSet):
            heads = HeadSet.load(heads)
        self._heads = None if heads is None else check_heads(heads, self.draft.model)
        if self.draft.tokenizer is not None:
            _ = self._builder, self._counter  # made now, so that what is wrong is said now

    # ------------------------------------------------------------------ token ids in, positions out

    def select(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        protected: Tensor | None = None,
        lookahead_tokens: int | None = None,
    ) -> Selection:
        """The paper's token-level form: which positions of each prompt to keep.

        Args:
            input_ids: LongTensor [batch, tokens], or [tokens] for one prompt.
            attention_mask: [batch, tokens], 0 at padding (on either side); None if nothing is padded.
            protected: bool [batch, tokens]: positions to keep beside the window. A leading BOS is always kept.
            lookahead_tokens: Instead of the config's, for this call.

        Returns:
            For each row `config.max_capacity_prompt` positions, or all of a shorter one (then the draft does
            not run unless `scores` is asked for).

        Raises:
            InvalidInputError: wrong shapes, an empty row, ids outside the vocabulary, a prompt longer than the
                draft's window.
            BudgetError: window and protected positions exceed the capacity.
            ScoringError: the draft produced NaN.
        """
        ids, mask, protect = check_batch(self.draft, input_ids, attention_mask, protected)
        config = self.config
        if lookahead_tokens is not None:
            config = replace(config, lookahead_tokens=lookahead_tokens)
        return choose_positions(self.draft, self._view, config, ids, mask, protect)

    # ------------------------------------------------------------------ text in, text out

    def compress(
        self,
        passages: Iterable[str],
        query: str,
        *,
        max_tokens: int | None = None,
        ratio: float | None = None,
        titles: Sequence[str | None] | None = None,
        on_empty: OnEmpty = "drop",
        protect: Sequence[Pattern] = (),
        retriever_scores: Sequence[float | None] | None = None,
    ) -> CompressionResult:
        """Keep what the draft looks at when it reads the passages with the question.

        Args:
            passages: Texts; an empty list gives an empty result.
            query: The question they were retrieved for.
            max_tokens: Most tokens to keep, all passages together, >= 1.
            ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`. Without either, the config's
                `max_capacity_prompt`.
            titles: Per passage a title the draft reads with it, or None. Not part of the budget or the output.
            on_empty: "drop" lets a passage lose everything; "keep_best" first gives each passage its best unit; where
                the budget cannot pay for all of these, the least wanted keep only the first words of it.
            protect: Strings, or compiled patterns: units that contain a match are always kept.
            retriever_scores: Per passage what the retriever said of it, None (or NaN) where it said nothing; the
                higher, the better. Used with scoring "fused".

        Returns:
            One entry per passage, in order. Passages that together fit the budget pass through untouched and
            the draft does not run.

        Raises:
            InvalidInputError: the arguments cannot be used as given.
            BudgetError: protected text does not fit the budget.
            ScoringError: the draft produced NaN.
        """
        begun = time.perf_counter()
        passages, query = check_passages(passages), check_query(query)
        titles = check_titles(titles, len(passages))
        check_budget(max_tokens, ratio)
        protect = check_protect(protect)
        check_retriever_scores(retriever_scores, len(passages))
        if on_empty not in ("drop", "keep_best"):
            raise InvalidInputError(f"on_empty must be 'drop' or 'keep_best'; got {on_empty!r}")
        builder, counter = self._builder, self._counter
        before = counter.count(passages)
        budget = budget_in_tokens(max_tokens, ratio, self.config.max_capacity_prompt, sum(before))
        if sum(before) <= budget:
            whole = [[(0, len(text))] if text else [] for text in passages]
            packed, scores = Packed(whole, passages, before), [math.nan] * len(passages)
            heat: list[list[tuple[int, int, float]]] = [[] for _ in passages]
            draft_tokens = 0
            tokenized = drafted = time.perf_counter()
        else:
            encoded = builder.reader.encode(passages)
            tokenized = time.perf_counter()
            token_scores, draft_tokens = self._score(encoded, titles, query)
            drafted = time.perf_counter()
            combine = None
            if self.config.scoring == "fused":
                combine = partial(self._combine, passages, titles, query, retriever_scores)
            ranking = rank_units(passages, encoded, token_scores, self.config, protect, combine, titles)
            packer = Packer(passages, before, self.config.separator or "", counter.count)
            packed = keep_within(packer, ranking, budget, best_of_each=on_empty == "keep_best")
            scores = ranking.passage_scores
            heat = [_heat(tokens, found) for tokens, found in zip(encoded, token_scores, strict=True)]
        done = time.perf_counter()
        return CompressionResult(
            passages=[
                CompressedPassage(*fields)
                for fields in zip(
                    passages, packed.texts, packed.spans, scores, before, packed.tokens, heat, strict=True
                )
            ],
            query=query,
            tokens_before=sum(before),
            tokens_after=packed.total,
            budget=budget,
            tokenizer=counter.name,
            timings={
                "tokenize": tokenized - begun,
                "draft": drafted - tokenized,
                "select": done - drafted,
                "total": done - begun,
            },
            draft=self.draft.name,
            draft_tokens=draft_tokens,
            renderer=Heatmap(),
        )

    def _combine(
        self,
        passages: Sequence[str],
        titles: Sequence[str | None],
        query: str,
        retriever_scores: Sequence[float | None] | None,
        units: Sequence[Unit],
        attention: Tensor,
    ) -> Tensor:
        """float32 [units]: scores from all that is known, positive, summing to 1."""
        texts = titled(units, passages, titles)
        owners = [unit.passage for unit in units]
        return torch.softmax(fuse(query, texts, attention, owners, retriever_scores, self.embedder), dim=0)

    def ingest(self, passages: Iterable[str], titles: Sequence[str | None] | None = None) -> int:
        """Read passages ahead of any question and keep what is needed of them in the store.

        Args:
            passages: Texts, as `compress` will get them.
            titles: Per passage a title or None, as `compress` will get them.

        Returns:
            How many tokens had to be read; 0 if all were known.

        Raises:
            InvalidInputError: without calibrated heads there is nothing to keep.
        """
        passages = check_passages(passages)
        titles = check_titles(titles, len(passages))
        if self._reader is None:
            raise InvalidInputError(
                "ingest keeps what the draft's calibrated heads need: make the SpecPC with scoring "
                f'"fused" or "heads", and calibrate its draft: draftapprox calibrate --model {self.draft.name}'
            )
        return self._reader.ingest(self._builder.reader.encode(passages), titles)

    def calibrate(self, *, tasks: int = 60, heads: int = 8, seed: int = 0) -> HeadSet:
        """Find the heads of the draft that look at evidence, and use them from now on; some minutes on a CPU.

        Args:
            tasks: How many questions to make up.
            heads: How many heads to choose.
            seed: Of the questions.

        Returns:
            The heads; `save()` keeps them for every `SpecPC` with this draft, as `draftapprox calibrate` does.

        Raises:
            UnsupportedModelError: the draft's weights are not in memory.
        """
        self._heads = calibrate(self.draft, tasks=tasks, heads=heads, seed=seed)
        self.__dict__.pop("_reader", None)
        return self._heads

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the budget counts them."""
        return self._counter.count(texts)

    def __deepcopy__(self, memo: object) -> SpecPC:
        return self  # it holds no state of a request; a copy would double the weights

    def __reduce__(self) -> Any:
        raise TypeError(f"SpecPC holds the weights of {self.draft.name} and is not pickled; save its name and config")

    def __repr__(self) -> str:
        return f"SpecPC({self.draft.name!r}, {self.config})"

    async def acompress(self, passages: Iterable[str], query: str, **options: Any) -> CompressionResult:
        """`compress` in a worker thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.compress, passages, query, **options)

    @cached_property
    def _builder(self) -> PromptBuilder:
        return PromptBuilder(self.draft)

    @cached_property
    def _counter(self) -> TokenCounter:
        if self.tokenizer is None:
            return TokenCounter(self.draft.require_tokenizer(), self.draft.name)
        return TokenCounter(self.tokenizer)

    @cached_property
    def _reader(self) -> PassageReader | None:
        """What listens to the calibrated heads; None where the paper's scoring is wanted, or none are known."""
        if self.config.scoring == "paper":
            return None
        heads = self._heads or find_heads(self.draft.model)
        if heads is None:
            if self.config.scoring == "heads":
                raise InvalidInputError(
                    f"{self.draft.name} was never calibrated. Run: draftapprox calibrate --model {self.draft.name}, or "
                    'use scoring="fused", which does without, or "paper".'
                )
            return None
        return PassageReader(self.draft, self._view, self._builder, heads, self.store)

    def _score(self, encoded: Sequence[Encoded], titles: Sequence[str | None], query: str) -> tuple[list[Tensor], int]:
        """Per passage float32 [tokens], and how many tokens the draft has read."""
        if self._reader is not None:
            return self._reader.scores(encoded, titles, query)
        return read_together(self.draft, self._view, self._builder, self.config, encoded, titles, query)


def _heat(tokens: Encoded, scores: Tensor) -> list[tuple[int, int, float]]:
    return [(start, end, score) for (start, end), score in zip(tokens.spans, scores.tolist(), strict=True)]
