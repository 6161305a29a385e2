"""The method, step by step: compress the prompt (SpecPC), draft the lookahead, prefill and evict (SpecKV), decode.

Galim et al., "Draft-based Approximate Inference for LLMs", ICLR 2026, sections 4.1 to 4.3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..config import MethodConfig, Positions, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..decoding.cache import has_slots
from ..decoding.greedy import read_prompt
from ..decoding.slots import MakeSlots
from ..errors import EngineClosedError, InvalidInputError, PromptTooLongError, UnsupportedModelError
from ..models.attention import attention_view
from ..models.compatibility import check_padding, position_limit
from ..models.loading import LoadedModel, pad_left
from ..models.locks import ForkSafeLock
from ..results import Generation, Usage
from ..speckv.cache.quantized import cache_bytes
from ..speckv.lookahead import Lookahead, make_lookahead
from ..speckv.prefill import new_cache, prefill, slots_maker
from ..speckv.text_draft import TextDraft
from ..specpc.compressor import SpecPC
from .batches import PrefilledBatch, PreparedBatch, protected_mask
from .requests import Request
from .stopping import Slot
from .validation import check_positions, specpc_draft


class Pipeline:
    """Runs batches of requests through the steps that one config asks for, one batch at a time.

    Args:
        target: The model that answers.
        draft: The draft; None only without lookahead and SpecPC.
        config: Settings of the method.
        self_draft: The target is its own draft: it drafts SpecKV's lookahead from a part of the prompt.
        positions: "renumber": the tokens that SpecPC keeps get positions 0, 1, 2, ... "original": those of the prompt.

    Raises:
        InvalidInputError: a draft is missing, `positions` does not fit the config, or SpecPC would have to select among
            ids of another vocabulary.
        MissingDependencyError: the quantization library is not installed.
        UnsupportedModelError: the target's attention cannot be observed, or it takes no position ids.
    """

    def __init__(
        self,
        target: LoadedModel,
        draft: LoadedModel | TextDraft | None,
        config: MethodConfig,
        *,
        self_draft: bool = False,
        positions: Positions = "renumber",
    ):
        check_positions(positions, config, target)
        self.target, self.draft, self.self_draft = target, draft, self_draft
        self.config, self.positions = config, positions
        self._lock = ForkSafeLock()  # one batch at a time, so that only one prompt's uncompressed layer is alive
        self._closed = False
        self.view: PreTrainedModel | None = None
        self._speckv: SpecKVConfig | None = None
        self._specpc: SpecPC | None = None
        self._lookahead: Lookahead | None = None
        if isinstance(config, SpecKVConfig | SpecKVPCConfig):
            self._speckv = config if isinstance(config, SpecKVConfig) else config.speckv_config
            self.view = attention_view(target.model)
            # An unsupported cache or a missing library raises here, not at the first prompt.
            new_cache(self.view, self._speckv.resolved_quantization())
        else:
            with suppress(UnsupportedModelError):
                self.view = attention_view(target.model)
        self.has_slots = self.view is not None and has_slots(target.model)  # whether requests can share a running batch
        if isinstance(config, SpecPCConfig | SpecKVPCConfig):
            specpc_config = config if isinstance(config, SpecPCConfig) else config.specpc_config
            self._specpc = SpecPC(specpc_draft(target, draft), specpc_config)
        elif draft is not None:
            self._lookahead = make_lookahead(target, draft, self_draft=self_draft)
        elif config.lookahead_tokens != 0:
            raise InvalidInputError(
                'SpecKV needs a draft model ("self" takes the target); without one set lookahead_tokens=0, '
                "which is SnapKV"
            )

    # ------------------------------------------------------------------ budgets

    def kept_prompt_tokens(self, tokens: int) -> int:
        """How many of a prompt's `tokens` tokens SpecPC keeps."""
        return tokens if self._specpc is None else min(tokens, self._specpc.config.max_capacity_prompt)

    def kept_pairs(self, tokens: int) -> int:
        """KV pairs per KV head that SpecKV keeps of `tokens` prompt tokens."""
        return tokens if self._speckv is None else min(tokens, self._speckv.max_capacity_prompt)

    def fits_budget(self, tokens: int) -> bool:
        """Whether a prompt of `tokens` tokens loses neither tokens nor pairs."""
        # The last prompt token is fed again when decoding starts, so it needs no pair of its own.
        return self.kept_prompt_tokens(tokens) == tokens and self.kept_pairs(tokens - 1) == tokens - 1

    def room(self, tokens: int) -> int:
        """Most tokens that the target's window leaves for the answer to a prompt of `tokens` tokens; negative: none."""
        return self.target.context_window - (
            tokens if self.positions == "original" else self.kept_prompt_tokens(tokens)
        )

    def check_length(self, tokens: int, max_new_tokens: int) -> None:
        """Check a prompt's length against the target's context window.

        Raises:
            PromptTooLongError: the kept prompt and the answer exceed the window; or, with original positions, the whole
                prompt and the answer do.
        """
        window, kept = self.target.context_window, self.kept_prompt_tokens(tokens)
        if kept + max_new_tokens > window:
            raise PromptTooLongError(
                f"the prompt has {tokens} tokens, {self.target.name} reads at most {window} with {max_new_tokens} to "
                "write. Shorten it (SpecPC.compress does), or write less."
            )
        if self.positions == "original" and tokens + max_new_tokens > window:
            raise PromptTooLongError(
                f"the prompt has {tokens} tokens, and with positions='original' {self.target.name} would see positions "
                f"beyond its window of {window} with {max_new_tokens} to write. positions='renumber' closes the gaps."
            )

    # ------------------------------------------------------------------ what may run together

    @property
    def evicts(self) -> bool:
        """Whether KV pairs are dropped, so that a request's cache has a fixed size."""
        return self._speckv is not None

    def decodes_in_slots(self, request: Request) -> bool:
        """Whether a request can join the running batch; others are decoded by transformers' own loop."""
        tokens = self.kept_prompt_tokens(len(request.prompt_ids))
        limit = position_limit(self.target.model, tokens)
        # transformers computes the whole prompt anew where a model's positions change on the way
        changes = limit is not None and limit < self.target.context_window and tokens + request.max_new_tokens > limit
        return self.has_slots and not changes and request.max_new_tokens > 0

    @property
    def make_slots(self) -> MakeSlots | None:
        """How full-attention layers lie in the running batch's cache."""
        return None if self._speckv is None else slots_maker(self._speckv)

    @property
    def max_rows(self) -> int | None:
        """Most rows of a running batch; None for any number."""
        # Llama 4 counts positions per batch, not per row.
        return 1 if any(hasattr(module, "floor_scale") for module in self.target.model.modules()) else None

    @property
    def max_prefill_rows(self) -> int | None:
        """Most rows of a prefill; None for any number."""
        settings = None if self._speckv is None else self._speckv.resolved_quantization()
        return 1 if settings is not None and settings.backend != "torch" else None  # a library's batch has no rows

    # ------------------------------------------------------------------ running a batch

    def prefill(self, requests: Sequence[Request]) -> PrefilledBatch | None:
        """Run requests that `decodes_in_slots`, all within the budget or all beyond it, up to their first step.

        Returns:
            The batch; None if all requests were cancelled.

        Raises:
            InvalidInputError: a prompt exceeds the draft's window.
            BudgetError: SpecPC cannot keep what is protected.
            ScoringError: a model's attention is NaN.
            EngineClosedError: `close` was called.
        """

        def is_cancelled() -> bool:
            return all(request.cancelled.is_set() for request in requests)

        with self.running_alone():
            started = time.perf_counter()
            ids, mask = pad_left([request.prompt_ids for request in requests])
            new = max(request.max_new_tokens for request in requests)
            batch = self.prepare(ids, mask, new, protected_mask(requests, mask), is_cancelled)
            if is_cancelled():
                return None
            cache, logits = batch.cache, None
            if cache is None:
                before = time.perf_counter()
                with self.target.lock:
                    cache, logits = self._plain_prefill(batch)
                batch.timings["prefill"] = time.perf_counter() - before
            batch.timings["total"] = time.perf_counter() - started
            return PrefilledBatch(batch, cache, logits)

    def _plain_prefill(self, batch: PreparedBatch) -> tuple[DynamicCache, Tensor]:
        """Read a batch that fits the budget with the target's own attention."""
        model, mask = self.target.model, batch.attention_mask
        check_padding(model, mask)
        positions = batch.position_ids
        if positions is None:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=model.config)
        return cache, read_prompt(model, batch.input_ids, mask, positions, cache)

    @contextmanager
    def running_alone(self) -> Iterator[None]:
        """One batch at a time, so that only one prompt's uncompressed layer is alive.

        Raises:
            EngineClosedError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine was closed; make a new one")
            yield

    def prepare(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        protected: Tensor | None = None,
        is_cancelled: Callable[[], bool] = bool,
    ) -> PreparedBatch:
        """Run the steps before decoding.

        Args:
            input_ids, attention_mask: LongTensor [batch, tokens], padded on the left.
            max_new_tokens: Most tokens that will be generated.
            protected: bool [batch, tokens], tokens that SpecPC must keep.
            is_cancelled: Polled between tokens and layers. True ends the step, and the result is of no use.
        """
        started = time.perf_counter()
        lookahead: list[Tensor] | None = None
        positions: Tensor | None = None
        if self._specpc is not None:
            if self.positions == "original":
                self.check_length(int(attention_mask.sum(dim=1).max()), max_new_tokens)
            input_ids, attention_mask, positions, lookahead = self._compress(
                self._specpc, input_ids, attention_mask, max_new_tokens, protected
            )
        evicts = self._speckv is not None and input_ids.shape[1] - 1 > self._speckv.max_capacity_prompt
        if evicts and self._lookahead is not None:
            assert self._speckv is not None
            if tokens := self._speckv.resolved_lookahead(max_new_tokens):
                lookahead = self._lookahead.draft(input_ids, attention_mask, tokens, is_cancelled)
        if lookahead is None or not evicts:
            lookahead = [torch.empty(0, dtype=torch.long) for _ in input_ids]
        drafted = time.perf_counter()
        timings = {"lookahead": drafted - started, "prefill": 0.0}
        if not evicts:
            return PreparedBatch(input_ids, attention_mask, positions, None, lookahead, timings)
        assert self._speckv is not None
        assert self.view is not None
        with self.target.lock:
            cache, _ = prefill(
                self.view, input_ids, attention_mask, lookahead, self._speckv, is_cancelled, positions, record=False
            )
        timings["prefill"] = time.perf_counter() - drafted
        kv_bytes = None if is_cancelled() else cache_bytes(cache) // len(input_ids)
        return PreparedBatch(input_ids, attention_mask, positions, cache, lookahead, timings, kv_bytes)

    def _compress(
        self, specpc: SpecPC, input_ids: Tensor, mask: Tensor, max_new_tokens: int, protected: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor] | None]:
        """Keep the tokens that SpecPC selects.

        Returns:
            Their ids and mask, padded on the left; their positions, or None where consecutive; in the cascade, what the
            same draft pass generated, per row.
        """
        tokens = 0
        if isinstance(self.config, SpecKVPCConfig):
            tokens = self.config.resolved_lookahead(max_new_tokens)
        selection = specpc.select(input_ids, mask, protected=protected, lookahead_tokens=tokens or None)
        kept = list(enumerate(selection.indices))
        short_ids, short_mask = pad_left([input_ids[row, indices].tolist() for row, indices in kept])
        positions: Tensor | None = None
        if self.positions == "original" and not torch.equal(short_mask.sum(dim=1), mask.sum(dim=1)):
            counted = mask.cumsum(-1) - 1
            positions, _ = pad_left([counted[row, indices].tolist() for row, indices in kept])
        # `lookahead_ids` runs the draft for rows that fit, so it is read only where pairs will be evicted.
        evicts = self._speckv is not None and short_ids.shape[1] - 1 > self._speckv.max_capacity_prompt
        return short_ids, short_mask, positions, selection.lookahead_ids if tokens and evicts else None

    # ------------------------------------------------------------------ results

    def generation_of(self, slot: Slot, prefilled: tuple[PreparedBatch, int], started: float, now: float) -> Generation:
        """The result of a row that was decoded in slots.

        Args:
            slot: The request and its tokens.
            prefilled: The batch it was prefilled in, and its row there.
            started, now: When decoding began and ended, in seconds of `time.perf_counter`.
        """
        batch, index = prefilled
        decode = now - started
        timings = batch.timings | {"decode": decode, "total": batch.timings["total"] + decode}
        kept = int(batch.attention_mask[index].sum())
        return self.generation(slot, kept, batch.lookahead_ids[index].tolist(), timings, batch.kv_bytes)

    def generation(
        self, slot: Slot, kept: int, lookahead_ids: list[int], timings: dict[str, float], kv_bytes: int | None
    ) -> Generation:
        """The result of a request.

        Args:
            slot: The request and its tokens.
            kept: Tokens of its prompt after SpecPC.
            lookahead_ids: What the draft wrote.
            timings: Seconds of each step.
            kv_bytes: Bytes of its cache.
        """
        text, tokenizer = "", self.target.tokenizer
        if tokenizer is not None:
            text = str(tokenizer.decode(slot.token_ids, skip_special_tokens=True))
            if slot.answer is not None:
                text = text[: slot.answer.stop_position()]
        usage = Usage(
            len(slot.request.prompt_ids), len(slot.token_ids), self.kept_pairs(kept), kept, kept_kv_bytes=kv_bytes
        )
        reason = slot.finish_reason or "length"
        return Generation(text, slot.token_ids, usage, dict(timings), reason, lookahead_ids)

    def empty_generation(self, request: Request, reason: str) -> Generation:
        """The result of a request for which nothing was generated."""
        tokens = len(request.prompt_ids)
        return Generation("", [], Usage(tokens, 0, self.kept_pairs(tokens), tokens), {"total": 0.0}, reason)

    def close(self) -> None:
        """Wait for the running batch, then refuse all others."""
        with self._lock:
            self._closed = True
