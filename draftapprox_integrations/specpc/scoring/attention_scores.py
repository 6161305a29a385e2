"""The draft's attention to each prompt token (paper section 4.2; golden README rules 1-3).

The attention of the last prompt tokens, and of every token drafted after them, is reduced to one number per prompt
token while the layers run. No tensor of size [heads, queries, tokens] outlives its layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...config import SpecPCConfig
from ...decoding.cache import SlotCache, chunked_layers, has_slots
from ...decoding.greedy import buffered_cache, continue_greedily
from ...decoding.step import PlainStep, Step
from ...kernels.dispatch import use_triton
from ...kernels.tail_scores import LeftPadding, tail_attention, tail_scores
from ...models.attention import StopForward, observing
from ...models.compatibility import ObservedLayers, attention_layers, check_chunks, check_padding, position_limit
from ...models.loading import eos_token_ids, input_device, truncate_after_eos
from .scorer import check_finite


@dataclass(frozen=True)
class Importance:
    """Token scores of a left-padded batch.

    Attributes:
        scores: float32 [batch, tokens]; 0 at padding. For reduction "mean" the sum, not divided.
        lookahead_ids: Per row LongTensor [<= lookahead_tokens], cut after the first end-of-sequence token; None if they
            were not asked for.
    """

    scores: Tensor
    lookahead_ids: list[Tensor] | None


class _Reducer:
    """Observer that reduces each layer's attention into one float32 [batch, prompt tokens] tensor.

    Attributes:
        scores: The result, on the device of the token ids.
        running: bool [batch], rows that have not ended; others receive no more scores.
        first_token: Tells the index of the first key that a layer attends to, in steps over slots; None where keys end
            with the newest token.
    """

    def __init__(self, view: PreTrainedModel, batch: int, prompt: int, window: int, config: SpecPCConfig):
        layers, device = int(view.config.get_text_config().num_hidden_layers), input_device(view)
        self.scores = torch.zeros(batch, prompt, device=device)
        self.running = torch.ones(batch, dtype=torch.bool, device=device)
        self.first_token: Callable[[int, Tensor], int] | None = None
        self.prompt, self.window, self.config = prompt, window, config
        self.start, self.last = config.resolved_start(layers), layers - 1
        self.view, self.layers = view, attention_layers(view)
        self.stop_after_last = False
        self.end = 0  # sequence length at the end of the current pass
        self.reports: ObservedLayers | None = None  # of the prefill
        self._seen: set[int] = set()
        self.left_padding = LeftPadding()

    def start_pass(self, new: int, end: int, *, cached: bool) -> None:
        """Announce a pass over `new` prompt tokens that end at sequence length `end`."""
        self.end = end
        self.reports = ObservedLayers(self.view, self.layers, new, end, windows=cached)

    def start_step(self, running: Tensor) -> None:
        """Announce a step of one drafted token per row."""
        self.end += 1
        self.reports = None
        self.running.copy_(running)

    def begin_pass(self) -> None:
        """A step's forward pass begins."""
        self._seen.clear()

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if self.reports is None:
            if layer in self._seen:  # some layers call their attention per part of a value
                return
            self._seen.add(layer)
        elif not self.reports.record(layer, query, key, mask):
            return
        if layer >= self.start and self.end > self.prompt - self.window:
            self._reduce(layer, query, key, mask, scaling)
        if layer == self.last and self.stop_after_last and self.end >= self.prompt:
            raise StopForward

    def _reduce(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        new, seen = query.shape[2], key.shape[2]
        # > 0 where a sliding-window cache dropped the beginning
        first_key = self.end - seen if self.first_token is None else self.first_token(layer, key)
        window_start = self.prompt - self.window
        prefill = self.end <= self.prompt
        rows = min(new, self.end - window_start) if prefill else new
        weights = None
        if prefill and self.config.weighted_query and self.window > 1:
            # Weights rise from 0 at the oldest query of the window to 1 at the newest (a chunk may hold a part of it).
            first_row = self.end - rows - window_start
            weights = torch.linspace(0, 1, self.window, device=query.device)[first_row : first_row + rows]
        maximum = self.config.reduction_type == "max"
        keys = min(seen, self.prompt - first_key)  # drafted tokens receive attention too, but no score
        found = None
        if prefill:  # in a step over slots the keys may go on beyond the newest token
            found = self._reduce_in_kernel(query, key, mask, scaling, rows, weights, keys)
        if found is None:
            found = torch.zeros(query.shape[0], keys, device=query.device)
            for _, piece_rows, attention in tail_attention(query, key, mask, scaling, rows):
                if weights is not None:
                    attention.mul_(weights[piece_rows, None])
                attention = attention[..., :keys]
                if maximum:
                    found = torch.maximum(found, attention.amax(dim=(1, 2)))
                else:
                    found += attention.sum(dim=(1, 2))
        found = found.to(self.scores.device) * self.running[:, None]
        kept = self.scores[:, first_key : first_key + keys]
        kept.copy_(torch.maximum(kept, found) if maximum else kept + found)

    def _reduce_in_kernel(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float,
        rows: int,
        weights: Tensor | None,
        keys: int,
    ) -> Tensor | None:
        """The reduced attention [batch, keys], or None where the kernel cannot compute it."""
        if not use_triton(query):
            return None
        ones = torch.ones(rows, device=query.device)
        factors = (ones if weights is None else weights).expand(query.shape[0], -1)
        first_keys = self.left_padding.first_keys(mask, key, ones.expand_as(factors))
        if first_keys is None:
            return None
        if self.config.reduction_type == "max":
            return tail_scores(query, key, first_keys, factors, keys, scaling, "max").amax(1)
        return tail_scores(query, key, first_keys, factors, keys, scaling, "sum").sum(1)


@torch.inference_mode()
def read_importance(
    view: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    window: int,
    config: SpecPCConfig,
    *,
    draft_tokens: bool = True,
) -> Importance:
    """Run the draft over a left-padded batch and reduce the attention of its last `window` tokens.

    Args:
        view: From `attention_view`.
        input_ids, attention_mask: LongTensor [batch, tokens]; every row has more than `window` real tokens.
        window: Number of last prompt tokens whose queries count.
        config: `lookahead_tokens`, `starting_layer_index`, `reduction_type`, `weighted_query` and
            `prefill_chunk_size` are used here.
        draft_tokens: Also return the drafted ids. With False and one lookahead token the forward pass ends at the last
            layer's attention: no LM head, no last MLP.

    Raises:
        ScoringError: a score is NaN or infinite.
        UnsupportedModelError: the draft's attention cannot be observed exactly.
    """
    check_padding(view, attention_mask)
    batch, prompt = input_ids.shape
    reducer = _Reducer(view, batch, prompt, window, config)
    steps = config.lookahead_tokens or 1
    if (limit := position_limit(view, prompt)) is not None:  # the last drafted token is never fed
        steps = min(steps, limit - prompt + 1)
    # Offloaded weights are moved by hooks that must run to their end, so then the pass is not cut short.
    offloaded = any(parameter.device.type == "meta" for parameter in view.parameters())
    reducer.stop_after_last = steps == 1 and not draft_tokens and not offloaded

    device = input_device(view)
    ids, mask = input_ids.to(device), attention_mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    chunk = config.prefill_chunk_size or prompt
    if chunk < prompt:
        check_chunks(view, chunk, prompt)
    cache = buffered_cache(view, steps) if steps > 1 or chunk < prompt else None
    # As a position, not as a number of tokens: given a number, Gemma 3n and 4 do not run all queries in all layers.
    last = torch.tensor([-1], device=device)
    logits: Tensor | None = None
    with observing(reducer):
        for start in range(0, prompt, chunk):
            stop = min(start + chunk, prompt)
            reducer.start_pass(stop - start, stop, cached=cache is not None)
            out = view(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop] if _padded(mask) else None,
                position_ids=positions[:, start:stop],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=last,
            )
        logits = out.logits[:, -1]
    assert reducer.reports is not None
    reducer.reports.check_complete(reducer.start)
    drafted: list[Tensor] | None = None
    if logits is not None:
        drafted = _draft(view, reducer, mask, positions[:, -1], logits, cache, steps)
    scores = reducer.scores.cpu() * attention_mask.cpu()
    check_finite(scores)
    return Importance(scores, drafted if draft_tokens else None)


def _draft(
    view: PreTrainedModel,
    reducer: _Reducer,
    mask: Tensor,
    position: Tensor,
    logits: Tensor,
    cache: DynamicCache | None,
    steps: int,
) -> list[Tensor]:
    """Draft greedily; each step's query is scored with too. The last drafted token is never fed."""
    ends, first = eos_token_ids(view), logits.argmax(-1)
    step: Step | PlainStep
    if cache is None:
        return [truncate_after_eos(row, ends) for row in first[:, None].cpu()]
    if has_slots(view):
        slots = SlotCache.adopt(cache, mask.sum(dim=1).tolist(), chunked_layers(view))
        reducer.first_token = slots.first_token
        step = Step(view, slots, reducer, preserved=[reducer.scores])
    else:
        step = PlainStep(view, cache, mask, reducer)
    drafted = continue_greedily(step, first, position, steps, ends, before=reducer.start_step)
    return [truncate_after_eos(row, ends) for row in drafted]


def _padded(mask: Tensor) -> bool:
    return not bool(mask.all())
