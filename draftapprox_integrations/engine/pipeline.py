"""From prompts to what `model.generate` starts from: shorter prompts (SpecPC), a smaller cache (SpecKV), or both."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import InvalidInputError, UnsupportedModelError
from ..models.attention import attention_view
from ..models.loading import LoadedModel, pad_left
from ..speckv.cache.quantized import held_bytes
from ..speckv.lookahead import DraftLookahead, SelfLookahead, same_vocabulary
from ..speckv.prefill import new_cache, prefill
from ..specpc.compressor import SpecPC
from .requests import Request


@dataclass(frozen=True)
class PreparedBatch:
    """A batch ready for `model.generate`.

    Attributes:
        ids, mask: LongTensor [batch, tokens], padded on the left; shorter than the prompts after SpecPC.
        cache: With KV pairs dropped, or None where everything fits.
        guesses: Per row what the draft wrote.
        timings: Seconds of "lookahead" (the draft's part) and "prefill".
        position_ids: LongTensor [batch, tokens] where they are not simply counted, else None.
        kv_bytes: What one row's share of the cache takes when decoding starts; None without `cache`.
    """

    ids: Tensor
    mask: Tensor
    cache: DynamicCache | None
    guesses: list[list[int]]
    timings: dict[str, float]
    position_ids: Tensor | None = None
    kv_bytes: int | None = None


class Pipeline:
    """The steps before decoding, as one config asks for them.

    Args:
        target, draft: The models; `draft` None only without lookahead and SpecPC.
        config: Which steps.
        own: The target drafts for itself.

    Raises:
        InvalidInputError: a draft is missing, or SpecPC is to choose among ids that mean nothing to the draft.
        MissingDependencyError: the library that is to quantize is not installed.
        UnsupportedModelError: the target cannot be observed, or not be told positions that it is to keep.
    """

    def __init__(
        self,
        target: LoadedModel,
        draft: LoadedModel | None,
        config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig,
        *,
        own: bool = False,
    ):
        self.target, self.draft, self.config, self.own = target, draft, config, own
        self.speckv: SpecKVConfig | None = config if isinstance(config, SpecKVConfig) else None
        self._specpc: SpecPC | None = None
        self._original = False
        self._lookahead: DraftLookahead | SelfLookahead | None = None
        if isinstance(config, SpecKVPCConfig):
            self.speckv = config.speckv
        if self.speckv is not None:
            self._view = attention_view(target.model)
            # What is missing, or cannot be dropped in parts, is said now, not at the first prompt.
            new_cache(self._view, self.speckv.resolved_quantization())
        if not isinstance(config, SpecKVConfig):
            if draft is None:
                raise InvalidInputError('SpecPC needs a draft model; "self" takes the target')
            if draft is not target and not same_vocabulary(target, draft):
                raise InvalidInputError(
                    f"{draft.name} and {target.name} have different vocabularies, so SpecPC cannot choose among the "
                    "prompt's ids. Compress the passages as text before they get here: SpecPC.compress, "
                    "SpecPCPostprocessor or SpecPCCompressor take any pair of models."
                )
            self._specpc = SpecPC(draft, config.specpc if isinstance(config, SpecKVPCConfig) else config)
            positions = config.resolved_positions() if isinstance(config, SpecKVPCConfig) else config.positions
            self._original = positions == "original"
            if self._original:
                _check_positions(target)
        elif draft is None and config.lookahead_tokens != 0:
            raise InvalidInputError(
                'SpecKV needs a draft model ("self" takes the target); without one set lookahead_tokens=0, '
                "which is SnapKV"
            )
        elif draft is not None:
            self._lookahead = SelfLookahead(target) if own else DraftLookahead(target, draft)

    def fits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens stays as it is, with all its pairs."""
        if self._specpc is not None and tokens > self._specpc.config.max_capacity_prompt:
            return False
        return self.speckv is None or tokens - 1 <= self.speckv.max_capacity_prompt

    def kept_tokens(self, tokens: int) -> int:
        """How many of a prompt's tokens the target sees."""
        return tokens if self._specpc is None else min(tokens, self._specpc.config.max_capacity_prompt)

    def kept_pairs(self, tokens: int) -> int:
        """KV pairs per head that are kept of `tokens` prompt tokens."""
        return tokens if self.speckv is None else min(tokens, self.speckv.max_capacity_prompt)

    def check_length(self, tokens: int, max_new_tokens: int) -> None:
        """Raises:
        InvalidInputError: what is left of the prompt, and the answer, do not fit the target's window; or the whole
            prompt, where its positions stay.
        """
        window = self.target.context_window
        if self._original and self.kept_tokens(tokens) + max_new_tokens <= window < tokens + max_new_tokens:
            raise InvalidInputError(
                f"the prompt has {tokens} tokens, and with positions='original' {self.target.name} would see positions "
                f"beyond its window of {window} with {max_new_tokens} to write. positions='renumber' closes the gaps."
            )
        if self.kept_tokens(tokens) + max_new_tokens > window:
            raise InvalidInputError(
                f"the prompt has {tokens} tokens, {self.target.name} reads at most {window} with {max_new_tokens} to "
                "write. Shorten it (SpecPC.compress does), or write less."
            )

    def run(self, requests: Sequence[Request]) -> PreparedBatch | None:
        """Prepare a batch; None if every request was cancelled meanwhile.

        Raises:
            InvalidInputError: a prompt exceeds the draft's window.
            BudgetError: SpecPC cannot keep what is protected.
            ScoringError: a model produced NaN.
        """

        def interrupted() -> bool:
            return all(request.cancelled.is_set() for request in requests)

        ids, mask = pad_left([request.ids for request in requests])
        protected: Tensor | None = None
        if self._specpc is not None and any(request.protected for request in requests):
            protected = torch.zeros(ids.shape, dtype=torch.bool)
            for row, request in enumerate(requests):
                if request.protected is not None:
                    protected[row, ids.shape[1] - len(request.ids) :] = torch.tensor(request.protected)
        new = max(request.max_new_tokens for request in requests)
        ready = self.prepare(ids, mask, new, protected, interrupted)
        return None if interrupted() else ready

    def prepare(
        self,
        ids: Tensor,
        mask: Tensor,
        max_new_tokens: int,
        protected: Tensor | None = None,
        interrupted: Callable[[], bool] = bool,
    ) -> PreparedBatch:
        """Prepare ids and mask, LongTensor [batch, tokens] padded on the left."""
        begun = time.perf_counter()
        guesses: list[Tensor] | None = None
        places: Tensor | None = None
        if self._specpc is not None:
            if self._original:
                self.check_length(int(mask.sum(dim=1).max()), max_new_tokens)
            ids, mask, guesses, places = self._shorten(ids, mask, max_new_tokens, protected)
        none = [torch.empty(0, dtype=torch.long) for _ in ids]
        cache = None
        guessed = time.perf_counter()
        if self.speckv is not None and ids.shape[1] - 1 > self.speckv.max_capacity_prompt:
            tokens = self.speckv.resolved_lookahead(max_new_tokens)
            if tokens and self._lookahead is not None:
                guesses = self._lookahead.guess(ids, mask, tokens, interrupted)
            guessed = time.perf_counter()
            with self.target.lock:
                cache, _ = prefill(self._view, ids, mask, guesses or none, self.speckv, interrupted, places)
        timings = {"lookahead": guessed - begun, "prefill": time.perf_counter() - guessed if cache else 0.0}
        size = None if cache is None or interrupted() else held_bytes(cache) // len(ids)
        return PreparedBatch(ids, mask, cache, [guess.tolist() for guess in guesses or none], timings, places, size)

    def _shorten(
        self, ids: Tensor, mask: Tensor, max_new_tokens: int, protected: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor] | None, Tensor | None]:
        """The tokens that SpecPC keeps, as a new batch; the draft's guess where SpecKV uses it; their positions."""
        assert self._specpc is not None
        wanted = 0
        if isinstance(self.config, SpecKVPCConfig):
            wanted = self.config.resolved_lookahead(max_new_tokens)
        selection = self._specpc.select(ids, mask, protected=protected, lookahead_tokens=wanted or None)
        short, short_mask = pad_left([ids[row, keep].tolist() for row, keep in enumerate(selection.indices)])
        needed = self.speckv is not None and short.shape[1] - 1 > self.speckv.max_capacity_prompt
        places: Tensor | None = None
        if self._original and not torch.equal(short_mask.sum(dim=1), mask.sum(dim=1)):
            counted = mask.cumsum(-1) - 1
            places, _ = pad_left([counted[row, keep].tolist() for row, keep in enumerate(selection.indices)])
        return short, short_mask, selection.lookahead_ids if wanted and needed else None, places


def _check_positions(target: LoadedModel) -> None:
    if "position_ids" not in inspect.signature(target.model.forward).parameters:
        raise UnsupportedModelError(
            f"{type(target.model).__name__} cannot be told positions; use positions='renumber' with {target.name}"
        )
