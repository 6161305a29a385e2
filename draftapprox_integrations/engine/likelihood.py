"""How likely a model finds given answers after what a method keeps of their prompts: evaluation needs no sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ScoringError
from ..speckv.cache.ragged import decoding_model
from .pipeline import Pipeline
from .requests import Request


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one answer.

    Attributes:
        total: Natural logarithm of its probability, the sum over its tokens; 0 for no token.
        tokens: Number of its tokens.
        is_greedy: Whether every token is the one that greedy decoding would choose.
    """

    total: float
    tokens: int
    is_greedy: bool

    @property
    def per_token(self) -> float:
        """`total` per token, in nats; 0 for no token."""
        return self.total / self.tokens if self.tokens else 0.0


@torch.inference_mode()
def log_likelihood(pipeline: Pipeline, prompt_ids: list[int], answer_ids: list[int], max_new_tokens: int) -> Likelihood:
    """Prefill a prompt as the pipeline's method does, then read the answer instead of generating one.

    Args:
        pipeline: Its target reads.
        prompt_ids, answer_ids: Token ids; at least one of the prompt.
        max_new_tokens: Number of tokens that SpecKV's lookahead and SpecPC prepare for, as in generation.

    Raises:
        InvalidInputError, ScoringError, EngineClosedError: as `Pipeline.prefill`.
    """
    if not answer_ids:
        return Likelihood(0.0, 0, True)
    request = Request(prompt_ids, max_new_tokens, fits_budget=pipeline.fits_budget(len(prompt_ids)))
    batch = pipeline.prefill([request])
    assert batch is not None  # nobody cancels it
    ids, fed = batch.prepared.input_ids[0], answer_ids[:-1]
    position = len(ids) if batch.prepared.position_ids is None else int(batch.prepared.position_ids[0, -1]) + 1
    if batch.logits is None:  # the last prompt token is yet to be fed
        fed, position = [int(ids[-1]), *fed], position - 1
    target = pipeline.target
    with target.lock:
        logits = [] if batch.logits is None else [batch.logits]
        if fed:
            model = decoding_model(target.model, batch.cache)
            out = model(
                input_ids=torch.tensor([fed], device=target.device),
                attention_mask=torch.ones(1, len(ids) + len(answer_ids) - 1, dtype=torch.long, device=target.device),
                position_ids=torch.arange(position, position + len(fed), device=target.device)[None],
                past_key_values=batch.cache,
                use_cache=True,
            )
            logits.append(out.logits[0])
        scores = torch.cat(logits).float().log_softmax(dim=-1)
    chosen = torch.tensor(answer_ids, device=scores.device)
    if bool(torch.isnan(scores).any()):
        raise ScoringError(f"{target.name} produced NaN; try another dtype, such as float32 or bfloat16")
    total = float(scores.gather(1, chosen[:, None]).sum())
    return Likelihood(total, len(answer_ids), bool((scores.argmax(dim=-1) == chosen).all()))
