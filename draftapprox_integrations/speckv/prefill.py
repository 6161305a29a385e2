"""Prefill that keeps only a part of each layer's KV pairs, chosen and evicted layer by layer as the model runs.

While a layer runs, its cache holds all pairs of prompt and lookahead; before the next layer runs, only the kept ones.
So the peak is one layer's full pairs beside the kept part, whatever the number of layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from ..config import KVQuantization, SpecKVConfig
from ..errors import ScoringError, UnsupportedModelError
from ..models.attention import Attend, StopForward, observing, tail_attention
from ..models.compatibility import Reports, attention_layers, check_padding, position_limit
from ..models.loading import input_device
from .cache.evicted import EvictedLayer
from .cache.quantized import QuantizedLayer
from .cache.ragged import RaggedLayer
from .scores import choose_kv, pool_kv_scores, share_kv
from .sparse_prefill import SparseAttention, choose_columns


class _Evictor:
    """Observer that scores each layer's pairs and drops the others from the cache at once; its attention if sparse."""

    def __init__(
        self,
        view: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        prompt: int,
        config: SpecKVConfig,
        last_layer: int,
        interrupted: Callable[[], bool],
    ):
        self.interrupted, self.name = interrupted, type(view).__name__
        self.reports = Reports(view, attention_layers(view), mask.shape[1], mask.shape[1])
        sharing = getattr(view.config.get_text_config(), "kv_sharing_modes", None) or []
        # Layers whose pairs later layers attend to as well: what all of these look at decides, so they are evicted at
        # the end. (The model itself holds on to their pairs until then.)
        self.lent: dict[int, list[Tensor]] = {layer: [] for layer, mode in enumerate(sharing) if mode == "store"}
        self.lent_keys: dict[int, weakref.ref[Tensor]] = {}
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
        if not self.reports.first(layer, query, key, mask):
            raise UnsupportedModelError(
                f"{self.name} mixes the values of a token's KV heads, which may not keep the same tokens. Use SpecPC "
                "in front of it."
            )
        attend: Attend | None = None
        owner = self._owner(layer, key)
        held = self.cache.layers[owner]
        if isinstance(held, EvictedLayer):
            raw = self._score(query, key, mask, scaling, self._heads(held, key))
            if owner in self.lent:
                self.lent[owner].append(raw)
            else:
                pooled = self._choose(layer, held, raw)
                if layer != self.last_layer:
                    attend = self._sparse_attention(pooled.expand(-1, key.shape[1], -1), mask, scaling)
        elif isinstance(held, DynamicSlidingWindowLayer) and owner == layer:  # small already: only what is after goes
            held.crop(-self.extra)
            held.record_past = False
            assert held.keys is not None
            assert held.values is not None
            held.keys, held.values = held.keys.clone(), held.values.clone()  # a slice would hold on to all of it
        if layer == self.last_layer:
            raise StopForward
        return attend

    def finish(self) -> None:
        """After the pass: evict what was lent, and take the lookahead out of convolutions.

        Raises:
            UnsupportedModelError: some attention was not observed.
        """
        self.reports.check_complete()
        for layer, found in self.lent.items():
            held = self.cache.layers[layer]
            if isinstance(held, EvictedLayer):
                raw = torch.stack(found)
                self._choose(layer, held, raw.amax(0) if self.config.reduction_type == "max" else raw.mean(0))
        for state in self.cache.layers:
            if isinstance(state, LinearAttentionLayer):
                state.crop(-self.extra)
                state.record_past = False
                with torch.inference_mode(mode=False):  # it is changed in place later, also outside of inference mode
                    state.conv_states = {i: conv.clone() for i, conv in state.conv_states.items() if conv is not None}

    def _owner(self, layer: int, key: Tensor) -> int:
        """The layer that keeps the pairs which `layer` attends to."""
        if not isinstance(self.cache.layers[layer], DummyLayer):
            if layer in self.lent:
                self.lent_keys[layer] = weakref.ref(key)
            return layer
        for owner, lent in self.lent_keys.items():
            if lent() is key:
                return owner
        raise UnsupportedModelError(
            f"layer {layer} of {self.name} attends to pairs that no layer keeps. Use SpecPC in front of it."
        )

    def _heads(self, held: EvictedLayer, key: Tensor) -> int:
        """How many KV heads choose: as many as attend, or one for all where they share what is cached (MLA)."""
        assert held.keys is not None
        heads = held.keys.shape[1]
        if heads not in (1, key.shape[1]):
            raise UnsupportedModelError(
                f"{self.name} attends with {key.shape[1]} KV heads and caches {heads}. Use SpecPC in front of it."
            )
        if self.config.head_budgets != "uniform" and held.keys is not key:
            raise UnsupportedModelError(
                f"{self.name} attends to something else than what it caches, so its heads cannot keep different "
                "numbers of pairs: set head_budgets='uniform'."
            )
        return heads

    def _choose(self, layer: int, held: EvictedLayer, raw: Tensor) -> Tensor:
        """Evict by scores [batch, held heads, tokens]; the pooled scores."""
        pooled = pool_kv_scores(raw, self.padding.to(raw.device), self.config.pool_type, self.config.kernel_size)
        if torch.isnan(pooled).any():
            raise ScoringError(
                "the target model's attention is NaN. Load it with dtype='float32', or check its weights."
            )
        self.kept[layer], self.scores[layer] = self._evict(layer, held, pooled), (raw, pooled)
        return pooled

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

    def _score(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, held: int) -> Tensor:
        """float32 [batch, held, prompt - window - 1]: attention of the last queries, reduced over the group."""
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
        if held == kv_heads:
            return found
        return found.amax(1, keepdim=True) if self.config.reduction_type == "max" else found.mean(1, keepdim=True)


def new_cache(model: PreTrainedModel, quantization: KVQuantization | None = None) -> DynamicCache:
    """An empty cache whose full-attention layers can drop pairs and whose sliding layers can be cut back.

    Args:
        model: Whose layers it is for.
        quantization: How full-attention layers hold what they keep; None as it is.

    Raises:
        MissingDependencyError: the library for it is not installed.
        UnsupportedModelError: a layer keeps a state that is not made of KV pairs.
    """
    cache = DynamicCache(config=model.config)
    config = model.config.get_text_config()
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = EvictedLayer() if quantization is None else QuantizedLayer(quantization)
        elif type(layer) is DynamicSlidingWindowLayer or (
            type(layer) is LinearAttentionLayer and config.layer_types[index] == "conv"  # has no recurrent state
        ):
            layer.activate_past_recording()  # type: ignore[no-untyped-call]
        elif type(layer) is not DummyLayer:
            raise UnsupportedModelError(
                f"{type(model).__name__} has layers of kind {type(layer).__name__}, whose state cannot be dropped in "
                "parts. Use SpecPC in front of it."
            )
    if not any(isinstance(layer, EvictedLayer) for layer in cache.layers):
        raise UnsupportedModelError(
            f"every layer of {type(model).__name__} keeps a sliding window only, so there is nothing to drop. Use "
            "SpecPC in front of it."
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
    position_ids: Tensor | None = None,
) -> tuple[DynamicCache, _Evictor]:
    """Run the target over prompt and lookahead and keep `max_capacity_prompt` KV pairs per layer and KV head.

    Args:
        view: the target, from `attention_view`.
        input_ids, attention_mask: LongTensor [batch, tokens], padded on the left; tokens > max_capacity_prompt + 1.
        lookahead: per row a LongTensor [any], in the target's vocabulary; all empty gives SnapKV. What is beyond the
            target's window is not used.
        config: the settings.
        interrupted: asked at every layer; True ends the prefill there, and the cache is of no use.
        position_ids: LongTensor [batch, tokens], anything at padding; the lookahead goes on after each row's last. None
            counts the tokens that are there.

    Returns:
        A cache that counts as holding all prompt tokens but the last, for `model.generate` to go on with; and what
        was chosen by layer.

    Raises:
        ScoringError: the attention is NaN.
        UnsupportedModelError: the target's attention cannot be observed exactly, or see `new_cache`.
    """
    check_padding(view, attention_mask)
    batch, prompt = input_ids.shape
    real = (attention_mask.sum(dim=1) if position_ids is None else position_ids[:, -1] + 1).tolist()
    if (limit := position_limit(view, max(real))) is not None:
        lookahead = [guess[: limit - tokens] for guess, tokens in zip(lookahead, real, strict=True)]
    longest = max(len(row) for row in lookahead)
    ids = torch.zeros(batch, prompt + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[:, :prompt], mask[:, :prompt] = input_ids, attention_mask
    for row, guess in enumerate(lookahead):
        ids[row, prompt : prompt + len(guess)] = guess
        mask[row, prompt : prompt + len(guess)] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    if position_ids is not None:
        shift = position_ids - places[:, :prompt]
        places += torch.cat([shift, shift[:, -1:].expand(-1, longest)], dim=1)
    cache = new_cache(view, config.resolved_quantization())
    last_layer = int(view.config.get_text_config().num_hidden_layers) - 1
    evictor = _Evictor(view, cache, mask, prompt, config, last_layer, interrupted)
    device = input_device(view)
    with observing(evictor):
        view(
            input_ids=ids.to(device),
            attention_mask=None if bool(mask.all()) else mask.to(device),
            position_ids=places.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor([-1], device=device),  # given a number, Gemma 3n and 4 skip queries
        )
    if not interrupted():
        evictor.finish()
    return cache, evictor
