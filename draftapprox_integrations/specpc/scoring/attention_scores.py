"""The draft's attention to each prompt token (paper section 4.2; golden README rules 1-3).

The attention of the last prompt tokens, and of every token drafted after them, is reduced to one number per prompt
token while the layers run. No tensor of size [heads, queries, tokens] outlives its layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...config import SpecPCConfig
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
    """Observer that reduces each layer's attention into one float32 [batch, prompt tokens] tensor."""

    def __init__(self, view: PreTrainedModel, batch: int, prompt: int, window: int, config: SpecPCConfig):
        layers = int(view.config.get_text_config().num_hidden_layers)
        self.scores = torch.zeros(batch, prompt)
        self.prompt, self.window, self.config = prompt, window, config
        self.start, self.last = config.resolved_start(layers), layers - 1
        self.view, self.layers = view, attention_layers(view)
        self.active = torch.ones(batch, dtype=torch.bool)  # rows that have not ended
        self.stop_after_last = False
        self.end = 0  # sequence length at the end of the current pass
        self.left_padding = LeftPadding()

    def start_pass(self, new: int, end: int, *, cached: bool) -> None:
        """Announce a forward pass over `new` tokens that end at sequence length `end`."""
        self.end = end
        self.reports = ObservedLayers(self.view, self.layers, new, end, windows=cached)

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if not self.reports.record(layer, query, key, mask):
            return
        if layer >= self.start and self.end > self.prompt - self.window and self.active.any():
            self._reduce(query, key, mask, scaling)
        if layer == self.last and self.stop_after_last and self.end >= self.prompt:
            raise StopForward

    def _reduce(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        new, seen = query.shape[2], key.shape[2]
        first_key = self.end - seen  # > 0 where a sliding-window cache dropped the beginning
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
        found = found.cpu() * self.active[:, None]
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
    cache = DynamicCache(config=view.config) if steps > 1 or chunk < prompt else None
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
    reducer.reports.check_complete(reducer.start)
    drafted: list[Tensor] | None = None
    if logits is not None:
        drafted = _draft(view, reducer, mask, positions[:, -1], logits, cache, steps)
    scores = reducer.scores * attention_mask.to(reducer.scores.device)
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
    ends = eos_token_ids(view)
    drafted = [logits.argmax(-1)]
    for _ in range(steps - 1):
        if ends:
            reducer.active &= ~torch.isin(drafted[-1].cpu(), torch.tensor(ends))
        if not reducer.active.any():
            break
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        position = position + 1
        reducer.start_pass(1, reducer.end + 1, cached=True)
        with observing(reducer):
            out = view(
                input_ids=drafted[-1][:, None],
                attention_mask=mask if _padded(mask) else None,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        drafted.append(out.logits[:, -1].argmax(-1))
    return [truncate_after_eos(row, ends) for row in torch.stack(drafted, dim=1).cpu()]


def _padded(mask: Tensor) -> bool:
    return not bool(mask.all())
