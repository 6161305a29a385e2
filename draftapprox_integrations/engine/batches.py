"""Batches of requests between the steps of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from .requests import Request


@dataclass(frozen=True)
class PreparedBatch:
    """Input of `model.generate`, after prompt compression and prefill.

    Attributes:
        input_ids, attention_mask: LongTensor [batch, tokens], padded on the left; after SpecPC shorter than
            the prompts.
        position_ids: LongTensor [batch, tokens], or None where positions are consecutive.
        cache: The prefilled cache after eviction, or None where every prompt fits.
        lookahead_ids: Per row the drafted tokens, LongTensor [any]; empty where nothing is evicted.
        timings: Seconds of "lookahead" (all draft work) and "prefill".
        kv_bytes: Cache bytes per row when decoding starts; None without `cache`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    cache: DynamicCache | None
    lookahead_ids: list[Tensor]
    timings: dict[str, float]
    kv_bytes: int | None = None


@dataclass(frozen=True)
class PrefilledBatch:
    """Requests that are ready to decode.

    Attributes:
        prepared: What was done before the prefill.
        cache: The prefilled cache; without the last prompt token where pairs were evicted.
        logits: [batch, vocabulary] after the last prompt token; None where it is yet to be fed.
    """

    prepared: PreparedBatch
    cache: DynamicCache
    logits: Tensor | None


def protected_mask(requests: Sequence[Request], mask: Tensor) -> Tensor | None:
    """Bool [batch, tokens], True where a request protects a token; None where none does."""
    if not any(request.protected for request in requests):
        return None
    protected = torch.zeros(mask.shape, dtype=torch.bool)
    for row, request in enumerate(requests):
        if request.protected is not None:
            protected[row, mask.shape[1] - len(request.prompt_ids) :] = torch.tensor(request.protected)
    return protected
