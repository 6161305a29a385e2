"""Greedy continuation of a batch of prompts: the draft's lookahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..errors import UnsupportedModelError
from ..models.attention import attention_view
from ..models.compatibility import check_padding, position_limit
from ..models.loading import input_device
from .buffered import BufferedLayer
from .cache import SlotCache, chunked_layers, has_slots
from .step import PlainStep, Step

# On a GPU the host reads the tokens, and looks for the end of the answers, once in this many steps.
STEPS_PER_READ = 8


def buffered_cache(model: PreTrainedModel, reserve: int) -> DynamicCache:
    """An empty cache of a model whose full-attention layers have room for `reserve` tokens after the prompt."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = BufferedLayer(reserve)
    return cache


@torch.inference_mode()
def read_prompt(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    """Fill a cache with a batch of prompts.

    Args:
        model: Its own attention reads them.
        input_ids, attention_mask, positions: LongTensor [batch, tokens], padded on the left, on any device.
        cache: Empty.

    Returns:
        Logits [batch, vocabulary] after the last tokens.
    """
    device = input_device(model)
    out = model(
        input_ids=input_ids.to(device),
        attention_mask=None if bool(attention_mask.all()) else attention_mask.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor([-1], device=device),  # Gemma 3n and 4 skip queries if given a number
    )
    logits: Tensor = out.logits[:, -1]
    return logits


@torch.inference_mode()
def generate_greedily(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: int,
    eos: Sequence[int],
    is_cancelled: Callable[[], bool] = bool,
) -> Tensor:
    """Generate as `model.generate(do_sample=False)` does.

    Args:
        model: The model; its own attention reads the prompt.
        input_ids, attention_mask: LongTensor [batch, tokens], padded on the left.
        tokens: Most tokens to generate, at least 1.
        eos: Ids that end a row; what follows them has no meaning.
        is_cancelled: Polled at every token; True ends the generation.

    Returns:
        LongTensor [batch, <= tokens], on the CPU.

    Raises:
        UnsupportedModelError: the model's attention cannot be observed, its layers' states have no slots, the rows
            cannot share a padded batch, or positions change on the way.
    """
    view = attention_view(model)
    check_padding(model, attention_mask)
    if not has_slots(model):
        raise UnsupportedModelError(f"the states of {type(model).__name__} cannot be stored in slots")
    if (limit := position_limit(model, input_ids.shape[1])) is not None and input_ids.shape[1] + tokens > limit:
        raise UnsupportedModelError(f"{type(model).__name__} changes its positions at {limit} tokens")
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    cache = buffered_cache(model, tokens)
    first = read_prompt(model, input_ids, attention_mask, positions, cache).argmax(-1)
    slots = SlotCache.adopt(cache, attention_mask.sum(dim=1).tolist(), chunked_layers(model))
    return continue_greedily(Step(view, slots), first, positions[:, -1].to(first.device), tokens, eos, is_cancelled)


def continue_greedily(
    step: Step | PlainStep,
    first: Tensor,
    position: Tensor,
    tokens: int,
    eos: Sequence[int],
    is_cancelled: Callable[[], bool] = bool,
    before: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Feed each row's newest token until `tokens` tokens are known; the last one is not fed.

    Args:
        step: The step of the batch.
        first: LongTensor [batch], the first tokens.
        position: LongTensor [batch], position of the last prompt token.
        tokens, eos, is_cancelled: As for `generate_greedily`.
        before: Called before each step with bool [batch], the rows that have not ended.

    Returns:
        LongTensor [batch, <= tokens], on the CPU.
    """
    ends = torch.tensor(list(eos), device=first.device)
    made = first.new_zeros(len(first), tokens)
    made[:, 0] = first
    running = ~torch.isin(first, ends)
    count, per_read = 1, STEPS_PER_READ if first.device.type == "cuda" else 1
    while count < tokens and not is_cancelled():
        if eos and count % per_read == 0 and not bool(running.any()):
            break
        if before is not None:
            before(running)
        position = position + 1
        made[:, count] = step(made[:, count - 1 : count], position[:, None]).argmax(-1)
        running = running & ~torch.isin(made[:, count], ends)
        count += 1
    return made[:, :count].cpu()
