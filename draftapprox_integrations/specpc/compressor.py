"""SpecPC: compress retrieved passages, or prompt ids, with a small draft model's attention.

Galim et al., "Draft-based Approximate Inference for LLMs", ICLR 2026, section 4.2. Text goes through one chain, each
step a public function or class: `segment` -> `Scorer.score` (the default fuses several) -> `rank` -> `Packer.pack`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..config import CompressionConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..models.attention import attention_view
from ..models.loading import LoadedModel, ModelSpec, load_model
from ..models.locks import renewed_in_children
from ..models.tokenization import TextEncoder, TokenCounter, TokenizerSpec
from ..results import CompressionResult, Selection, Span
from .assembly import Scored, Stopwatch, assemble, whole
from .budget import Order
from .calibration.calibrate import calibrate
from .calibration.fit import fit_to, read_questions
from .remote import RemoteDraft, as_remote, refuse_settings
from .request import OnEmpty, as_request
from .scoring.embedder import Embedder, check_embedder
from .scoring.heads import HeadSet, check_heads, find_heads
from .scoring.per_passage import CalibratedHeadsScorer, Progress
from .scoring.prompt import PromptBuilder
from .scoring.registry import ScorerSettings, ScorerSpec, attention_of, build_scorer, check_scorer
from .scoring.scorer import Scorer, check_scores
from .store.passage_store import PassageStore, open_store
from .text.packing import Packer
from .text.ranking import Pattern, longest_units, rank
from .text.segmentation import segment
from .token_selection import choose_positions
from .validation import as_config, as_passages, check_batch


@renewed_in_children
class SpecPC:
    """Compress retrieved passages, or prompt ids, with a draft model's attention.

        pc = SpecPC("default")
        result = pc.compress(passages, "When was the bridge built?", max_tokens=512)
        print(result.passages[0].text)

    Safe to use from many threads: forward passes of one draft take turns.

    Args:
        draft: A model spec for `load_model`, or a `LoadedModel`. Or the address of a service, "http://host:port", which
            `draftapprox serve` runs: it has the draft and the settings, and this object needs neither.
        config: Settings of the paper's method (or a dict of them), used by `select` and by joint scores.
        compression: Settings of `compress` (or a dict of them).
        scorer: How `compress` scores sentences. "fused": attention (of calibrated heads; of all heads, jointly, for a
            draft that was never calibrated), BM25, the embedder and the retriever. "heads": calibrated heads alone.
            "joint": the paper's attention of all heads, passages read together. Or an object with
            `score(query, passages, sentences)`, see `Scorer`.
        tokenizer: Counts the tokens of `compress` budgets: usually the target model's. A transformers tokenizer, a
            folder or hub id of one, a tiktoken encoding, or a function from text to tokens or to their number. None:
            the draft's.
        store: Keeps passages that were read before, for calibrated heads: a `PassageStore` or the path of its file.
            None: 256 MiB in memory, for the lifetime of this object.
        embedder: Embeds sentences for scorer "fused": a LangChain `Embeddings`, a LlamaIndex `BaseEmbedding`, or a
            function from texts to vectors.
        heads: Calibrated heads of the draft, or the path of their file. None: those saved for it.
        token: The token of a service. None: the environment variable DRAFTAPPROX_TOKEN, if it is set.

    Raises:
        ModelLoadError: the draft or the tokenizer cannot be loaded.
        UnsupportedModelError: the draft's attention cannot be observed.
        InvalidInputError: `scorer`, `store`, `embedder` or `heads` cannot be used.
        ValueError: `config.starting_layer_index` is beyond the draft's layers.
    """

    def __init__(
        self,
        draft: ModelSpec = "default",
        config: SpecPCConfig | dict[str, Any] | None = None,
        *,
        compression: CompressionConfig | dict[str, Any] | None = None,
        scorer: ScorerSpec = "fused",
        tokenizer: TokenizerSpec | None = None,
        store: PassageStore | str | os.PathLike[str] | None = None,
        embedder: Embedder | None = None,
        heads: HeadSet | str | os.PathLike[str] | None = None,
        token: str | None = None,
    ):
        check_scorer(scorer)
        refuse_settings(draft, config, compression, scorer, tokenizer, store, embedder, heads)
        self.draft: LoadedModel = as_remote(draft, token) or load_model(draft)
        self.config = as_config(config, SpecPCConfig)
        self.compression = as_config(compression, CompressionConfig)
        self.tokenizer = tokenizer
        self.embedder = check_embedder(embedder)
        self.store = None if store is None else open_store(store)
        if heads is not None and not isinstance(heads, HeadSet):
            heads = HeadSet.load(heads)
        self._heads = None if heads is None else check_heads(heads, self.draft.model)
        self.scorer_spec = scorer
        if isinstance(self.draft, RemoteDraft):
            return
        self._view = attention_view(self.draft.model)
        self.config.resolved_start(int(self._view.config.get_text_config().num_hidden_layers))
        if self.draft.tokenizer is not None:
            _ = self._encoder, self._counter  # a tokenizer that cannot be used is reported now
            if isinstance(scorer, str):
                PromptBuilder(self.draft)  # and so is a chat template

    # ------------------------------------------------------------------ token ids in, positions out

    def select(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        protected: Tensor | None = None,
        lookahead_tokens: int | None = None,
    ) -> Selection:
        """Choose the positions of each prompt to keep: the paper's token-level form.

        Args:
            input_ids: LongTensor [batch, tokens], or [tokens] for one prompt.
            attention_mask: [batch, tokens], 0 at padding (on either side); None if nothing is padded.
            protected: bool [batch, tokens]: positions to keep beside the window. A leading BOS is always kept.
            lookahead_tokens: Replaces the config's, for this call.

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
        keep_ratio: float | None = None,
        recall: float | None = None,
        min_relevance: float | None = None,
        top_n: int | None = None,
        order: Order = "input",
        titles: Sequence[str | None] | None = None,
        on_empty: OnEmpty = "drop",
        protect: Sequence[Pattern] = (),
        retriever_scores: Sequence[float | None] | None = None,
    ) -> CompressionResult:
        """Keep the sentences that matter for the query, within a token budget.

        Args:
            passages: Texts; an empty list gives an empty result.
            query: The query they were retrieved for.
            max_tokens: Most tokens to keep, all passages together, >= 1.
            keep_ratio: Share of the tokens to keep, in (0, 1]; instead of `max_tokens`.
            recall: Share of the evidence to keep, in (0, 1], as far as the scores tell, in as few sentences as that
                takes. Scorer "fused" only, as `min_relevance`.
            min_relevance: Lowest probability to be evidence, in [0, 1], of a kept sentence; all may be dropped.
            top_n: Most passages of which something is kept, the most relevant ones, >= 1. Without any limit the budget
                is `config.max_capacity_prompt` tokens.
            order: "relevance": the passages of the result are sorted, the most relevant first.
            titles: Per passage a title or None. Scored with the passage; not part of the budget or the output.
            on_empty: "drop" lets a passage lose everything. "keep_best" first gives each passage its best sentence;
                where the budget cannot pay for all of these, the lowest-ranked keep only its first words.
            protect: Strings or compiled patterns: sentences that contain a match are always kept.
            retriever_scores: Per passage the retriever's score, None or NaN if unknown; the higher, the better.

        Returns:
            One entry per passage, in order. Passages that together fit the budget pass untouched and the draft does
            not run, unless `recall`, `min_relevance`, `top_n` or `order="relevance"` asks for scores.

        Raises:
            InvalidInputError: an argument is invalid, or a setting can have no effect with this scorer.
            BudgetError: protected text does not fit the budget.
            ScoringError: the draft produced NaN.
        """
        watch = Stopwatch()
        request = as_request(
            passages,
            query,
            max_tokens=max_tokens,
            keep_ratio=keep_ratio,
            recall=recall,
            min_relevance=min_relevance,
            top_n=top_n,
            order=order,
            titles=titles,
            on_empty=on_empty,
            protect=protect,
            retriever_scores=retriever_scores,
        )
        if isinstance(self.draft, RemoteDraft):
            return self.draft.compress(request)
        items, query, limits, protect = request.items, request.query, request.limits, request.protect
        texts = [item.text for item in items]
        before = self._counter.count(texts)
        budget, names = (
            limits.tokens(self.config.max_capacity_prompt, sum(before)),
            (self._counter.name, self.draft.name),
        )
        if sum(before) <= budget and not limits.needs_scores:
            return assemble(query, items, before, whole(items, before), budget, names, watch)
        longest = longest_units(texts, budget, sum(before), protect)
        granularity = self.compression.granularity
        sentences = segment(texts, granularity, self._token_spans(texts), max_characters=longest)
        watch.done("tokenize")
        scores = check_scores(self.scorer, self.scorer.score(query, items, sentences), sentences)
        limits.check_scores(scores)
        watch.done("score")
        ranking = rank(
            items,
            sentences,
            scores,
            self.compression,
            protect=protect,
            neighbor_tokens=self.config.resolved_neighbors(),
            eligible=limits.eligible(scores),
        )
        packer = Packer(texts, before, self.compression.resolved_separator(), self._counter.count)
        packed = packer.pack(ranking, budget, best_of_each=request.on_empty == "keep_best")
        return assemble(
            query, items, before, packed, budget, names, watch, Scored(sentences, scores, ranking), limits.order
        )

    async def acompress(self, passages: Iterable[str], query: str, **options: Any) -> CompressionResult:
        """`compress` in a worker thread, or awaiting the service, so that the event loop stays free."""
        if isinstance(self.draft, RemoteDraft):
            return await self.draft.acompress(as_request(passages, query, **options))
        return await asyncio.to_thread(self.compress, passages, query, **options)

    def ingest(
        self, passages: Iterable[str], titles: Sequence[str | None] | None = None, *, progress: Progress | None = None
    ) -> int:
        """Read passages ahead of any query and keep their keys in the store.

        Args:
            passages: Texts, as `compress` will get them.
            titles: Per passage a title or None, as `compress` will get them.
            progress: Called as progress(done, passages) each time the draft has read some passages, and at the end.

        Returns:
            The number of tokens read; 0 if all passages were in the store.

        Raises:
            InvalidInputError: the scorer uses no calibrated heads, so there is nothing to keep.
        """
        items = as_passages(passages, titles)
        if isinstance(self.draft, RemoteDraft):
            return self.draft.ingest(items, progress)
        attention = attention_of(self.scorer)
        if not isinstance(attention, CalibratedHeadsScorer):
            raise InvalidInputError(
                "ingest keeps the keys of the draft's calibrated heads: make the SpecPC with scorer "
                f'"fused" or "heads", and calibrate its draft: draftapprox calibrate --model {self.draft.name}'
            )
        return attention.ingest(items, progress)

    def calibrate(
        self, *, tasks: int = 60, heads: int = 8, seed: int = 0, data: str | os.PathLike[str] | None = None
    ) -> HeadSet:
        """Find the attention heads of the draft that find evidence, and use them from now on; minutes on a CPU.

        Args:
            tasks: Number of invented questions.
            heads: Number of heads to choose.
            seed: Seed of the questions.
            data: File of questions with known evidence (`read_tasks` says how): the weights of scorer "fused", with
                this embedder, are fitted to them too. At least 30 questions; a few hundred are better.

        Returns:
            The heads; `save()` keeps them for every `SpecPC` with this draft, as `draftapprox calibrate` does.

        Raises:
            UnsupportedModelError: the draft's weights are offloaded.
            InvalidInputError: `data` cannot be read, or holds too few questions.
        """
        questions = [] if data is None else read_questions(data)
        found = calibrate(self.draft, tasks=tasks, heads=heads, seed=seed)
        self._heads = fit_to(self.draft, found, questions, self.embedder, seed=seed) if questions else found
        self.__dict__.pop("scorer", None)
        return self._heads

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of `compress`, built at first use.

        Raises:
            InvalidInputError: a setting can have no effect with it, or the draft was never calibrated.
        """
        settings = ScorerSettings(self.draft, self.config, self.compression, self.store, self.embedder, self._heads)
        return build_scorer(self.scorer_spec, settings)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, counted as for the budget."""
        return self.draft.count(texts) if isinstance(self.draft, RemoteDraft) else self._counter.count(texts)

    @property
    def has_heads_of_its_own(self) -> bool:
        """Whether it has calibrated heads that are not those saved for the draft."""
        if (mine := self._heads) is None:
            return False
        saved = find_heads(self.draft.model)
        return saved is None or (saved.heads, saved.relevance) != (mine.heads, mine.relevance)

    def __deepcopy__(self, memo: object) -> SpecPC:
        return self  # it holds no state of a request; a copy would double the weights

    def __reduce__(self) -> Any:
        if isinstance(self.draft, RemoteDraft):
            return SpecPC, (self.draft,)
        raise TypeError(f"SpecPC holds the weights of {self.draft.name} and is not pickled; save its name and config")

    def __repr__(self) -> str:
        if isinstance(self.draft, RemoteDraft):
            return f"SpecPC({self.draft.source!r})"
        return f"SpecPC({self.draft.name!r}, {self.config}, compression={self.compression})"

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.draft.require_tokenizer())

    @cached_property
    def _counter(self) -> TokenCounter:
        if self.tokenizer is None:
            return TokenCounter(self.draft.require_tokenizer(), self.draft.name)
        return TokenCounter(self.tokenizer)

    def _token_spans(self, texts: Sequence[str]) -> list[list[Span]] | None:
        if self.compression.granularity != "token":
            return None
        return [encoded.spans for encoded in self._encoder.encode(texts)]
