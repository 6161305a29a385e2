"""Prefill that keeps only a part of each layer's KV pairs, chosen and evicted layer by layer as the model runs.

While a layer runs, its cache holds all pairs of prompt and lookahead; before the next layer runs, only the kept ones.
So the peak is one layer's full pairs beside the kept part, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..attention import Attend, StopForward, observing, tail_attention
from ..config import SpecKVConfig
from ..errors import ScoringError, UnsupportedModelError
from ..models import input_device
from .ragged import RaggedLayer
from .scores import choose_kv, pool_kv_scores, share_kv
from .sparse_prefill import SparseAttention, choose_columns


class EvictedLayer(DynamicLayer):
    """KV pairs of a sequence of which some were dropped; new tokens go on at the sequence's true length."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dropped = 0

    def keep(self, positions: Tensor, length: int) -> None:
        """Keep only `positions` [batch, kv_heads, kept] of a sequence that counts as `length` tokens long."""
        assert self.keys is not None
        assert self.values is not None
        index = positions.to(self.keys.device)[..., None]
        self.keys = self.keys.gather(2, index.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, index.expand(-1, -1, -1, self.values.shape[-1]))
        self.dropped = length - positions.shape[-1]

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones included."""
        return int(super().get_seq_length()) + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What the mask must cover: the kept pairs and the new ones, which end where the sequence ends."""
        return self.get_seq_length() + query_length - self.dropped, self.dropped


class _Evictor:
    """Observer that scores each layer's pairs and drops the others from the cache at once; its attention if sparse."""

    def __init__(
        self,
        cache: DynamicCache,
        mask: Tensor,
        prompt: int,
        config: SpecKVConfig,
        last_layer: int,
        interrupted: Callable[[], bool],
    ):
        self.interrupted = interrupted
        self.cache, self.prompt, self.config, self.last_layer = cache, prompt, config, last_layer
        self.extra = mask.shape[1] - (prompt - 1)  # the last prompt token, which is fed again, and the lookahead
        self.padding = ~mask[:, : prompt - config.resolved_window() - 1].bool()
        self.real = mask[:, :prompt].sum(dim=1)
        self.queries = mask[:, prompt - config.resolved_window() - 1 :].bool()  # a lookahead that ended early is padded
        self.kept: dict[int, Tensor] = {}
        self.scores: dict[int, tuple[Tensor, Tensor]] = {}

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        if self.interrupted():
            raise StopForward
        attend: Attend | None = None
        held = self.cache.layers[layer]
        if isinstance(held, EvictedLayer):
            raw = self._score(query, key, mask, scaling)
            padding = self.padding.to(raw.device)
            pooled = pool_kv_scores(raw, padding, self.config.pool_type, self.config.kernel_size)
            if torch.isnan(pooled).any():
                raise ScoringError(
                    "the target model's attention is NaN. Load it with dtype='float32', or check its weights."
                )
            chosen = self._evict(layer, held, pooled)
            self.kept[layer], self.scores[layer] = chosen, (raw, pooled)
            if layer != self.last_layer:
                attend = self._sparse_attention(pooled, mask, scaling)
        elif isinstance(held, DynamicSlidingWindowLayer):  # small already: only what is after the prompt goes
            held.crop(-self.extra)
            held.record_past = False
            assert held.keys is not None
            assert held.values is not None
            held.keys, held.values = held.keys.clone(), held.values.clone()  # a slice would hold on to all of it
        if layer == self.last_layer:
            raise StopForward
        return attend

    def _sparse_attention(self, pooled: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        """The layer's attention with `prefill="sparse"`; None where all prompts are short or the mask is unusual."""
        window, size = self.config.prefill_window_size, self.config.prefill_vertical_size
        if self.config.prefill == "dense" or int(self.real.max()) < window + size:
            return None
        if mask is not None and (mask.dtype != torch.bool or mask.shape[1] != 1):
            return None
        lengths = self.real.tolist()
        starts = [self.prompt - length for length in lengths]
        columns = choose_columns(pooled, size)
        return SparseAttention(columns, starts, lengths, pooled.shape[-1], window, size, mask, scaling)

    def _evict(self, layer: int, held: EvictedLayer, pooled: Tensor) -> Tensor:
        """Drop what is not chosen; what is chosen, as `choose_kv` or `share_kv` gives it."""
        settings, length = self.config, self.prompt - 1
        capacity, window = settings.max_capacity_prompt, settings.resolved_window()
        if settings.head_budgets == "uniform":
            chosen = choose_kv(pooled, self.real, capacity, window)
            held.keep(chosen, length)
            return chosen
        assert held.keys is not None
        assert held.values is not None
        chosen = share_kv(pooled, self.real, capacity, window, settings.floor_alpha)
        self.cache.layers[layer] = RaggedLayer(held.keys, held.values, chosen)
        return chosen

    def _score(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """float32 [batch, kv_heads, prompt - window - 1]: attention of the last queries, reduced over the group."""
        batch, heads, total, _ = query.shape
        kv_heads = key.shape[1]
        group = heads // kv_heads
        columns = self.prompt - self.config.resolved_window() - 1
        rows = total - columns
        valid = self.queries.to(query.device)
        found = torch.zeros(batch, kv_heads, columns, device=query.device)
        for head_slice, piece_rows, attention in tail_attention(query, key, mask, scaling, rows):
            kv = head_slice.start // group
            # nan_to_num: a padded query attends to nothing
            weights = attention[..., :columns].nan_to_num_(0.0) if not valid.all() else attention[..., :columns]
            weights = weights * valid[:, None, piece_rows, None]
            if self.config.reduction_type == "max":
                found[:, kv] = torch.maximum(found[:, kv], weights.amax(dim=(1, 2)))
            else:
                found[:, kv] += weights.sum(dim=(1, 2))
        if self.config.reduction_type == "mean":
            found /= group * valid.sum(dim=1)[:, None, None]
        return found


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache whose full-attention layers can drop pairs and whose sliding layers can be cut back.

    Raises:
        UnsupportedModelError: a layer keeps a state that is not made of KV pairs.
    """
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = EvictedLayer()
        elif isinstance(layer, DynamicSlidingWindowLayer):
            layer.activate_past_recording()
        else:
            raise UnsupportedModelError(
                f"{type(model).__name__} has layers of kind {type(layer).__name__}, whose state cannot be dropped in "
                "parts. Use SpecPC in front of it."
            )
    return cache


@torch.inference_mode()
def prefill(
    view: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    lookahead: list[Tensor],
    config: SpecKVConfig,
    interrupted: Callable[[], bool] = bool,
) -> tuple[DynamicCache, _Evictor]:
    """Run the target over prompt and lookahead and keep `max_capacity_prompt` KV pairs per layer and KV head.

    Args:
        view: the target, from `attention_view`.
        input_ids, attention_mask: LongTensor [batch, tokens], padded on the left; tokens > max_capacity_prompt + 1.
        lookahead: per row a LongTensor [any], in the target's vocabulary; all empty gives SnapKV.
        config: the settings.
        interrupted: asked at every layer; True ends the prefill there, and the cache is of no use.

    Returns:
        A cache that counts as holding all prompt tokens but the last, for `model.generate` to go on with; and what
        was chosen by layer.

    Raises:
        ScoringError: the attention is NaN.
        UnsupportedModelError: see `new_cache`.
    """
    batch, prompt = input_ids.shape
    longest = max(len(row) for row in lookahead)
    ids = torch.zeros(batch, prompt + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[:, :prompt], mask[:, :prompt] = input_ids, attention_mask
    for row, guess in enumerate(lookahead):
        ids[row, prompt : prompt + len(guess)] = guess
        mask[row, prompt : prompt + len(guess)] = 1
    cache = new_cache(view)
    last_layer = int(view.config.get_text_config().num_hidden_layers) - 1
    evictor = _Evictor(cache, mask, prompt, config, last_layer, interrupted)
    device = input_device(view)
    with observing(evictor):
        view(
            input_ids=ids.to(device),
            attention_mask=None if bool(mask.all()) else mask.to(device),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return cache, evictor
