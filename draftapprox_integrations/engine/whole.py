"""A whole batch by transformers' own loop: for what cannot join the running batch.

That is a target whose attention cannot be observed or whose states have no slots, a prompt at whose length the model
changes its positions, and prompts that share logits processors or stopping criteria of the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import StoppingCriteriaList

from ..models.generation import with_generation_config
from ..models.loading import LoadedModel, pad_left
from ..results import Generation
from ..speckv.cache.ragged import decoding_model
from .batches import PreparedBatch, protected_mask
from .pipeline import Pipeline
from .requests import Request
from .sampling import decoding_settings
from .stopping import BatchStoppingCriteria, NanLogitsGuard, Slot


def run_whole(pipeline: Pipeline, requests: Sequence[Request]) -> list[Generation | Exception]:
    """Run requests as one batch with transformers' own loop, in this thread.

    Returns:
        Per request its result, or the error of this request alone.

    Raises:
        InvalidInputError: a prompt exceeds the draft's window.
        BudgetError: SpecPC cannot keep what is protected.
        ScoringError: a model's attention is NaN.
        EngineClosedError: `close` was called.
    """
    max_new_tokens = max(request.max_new_tokens for request in requests)
    if max_new_tokens == 0:
        return [pipeline.empty_generation(request, "length") for request in requests]

    def is_cancelled() -> bool:
        return all(request.cancelled.is_set() for request in requests)

    with pipeline.running_alone():
        started = time.perf_counter()
        ids, mask = pad_left([request.prompt_ids for request in requests])
        batch = pipeline.prepare(ids, mask, max_new_tokens, protected_mask(requests, mask), is_cancelled)
        if is_cancelled():
            return [pipeline.empty_generation(request, "cancelled") for request in requests]
        prepared = time.perf_counter()
        slots = _decode(pipeline.target, requests, batch)
        ended = time.perf_counter()
        timings = batch.timings | {"decode": ended - prepared, "total": ended - started}
        kept = batch.attention_mask.sum(dim=1).tolist()
        return [
            slot.error or pipeline.generation(slot, tokens, lookahead.tolist(), timings, batch.kv_bytes)
            for slot, tokens, lookahead in zip(slots, kept, batch.lookahead_ids, strict=True)
        ]


def _decode(target: LoadedModel, requests: Sequence[Request], batch: PreparedBatch) -> list[Slot]:
    """Generate with the target from a prepared batch; one slot per request."""
    device, sampling = target.device, requests[0].sampling
    config, options, eos = decoding_settings(target, requests, batch.input_ids.shape[1])
    model = with_generation_config(decoding_model(target.model, batch.cache), config)
    criteria = BatchStoppingCriteria(requests, target.tokenizer, eos, options.pop("stopping_criteria", None) or ())
    processors = [NanLogitsGuard(criteria.slots), *(options.pop("logits_processor", None) or [])]
    if batch.position_ids is not None:
        options["position_ids"] = batch.position_ids.to(device)
    with target.lock, torch.inference_mode(), sampling.seeded(device):
        type(model).generate(  # type: ignore[attr-defined]
            model,
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            past_key_values=batch.cache,
            stopping_criteria=StoppingCriteriaList([criteria]),
            logits_processor=processors,
            **options,
        )
    return criteria.slots
