"""SpecKV's prefill: score and evict the KV pairs of each layer while the model runs.

While a layer runs, its cache holds all pairs of prompt and lookahead; before the next layer runs, only the kept ones.
Peak memory is one layer's full pairs plus the kept pairs, whatever the number of layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from ..config import KVQuantization, SpecKVConfig
from ..decoding.slots import MakeSlots
from ..errors import ScoringError, UnsupportedModelError
from ..kernels.dispatch import use_triton
from ..kernels.tail_scores import LeftPadding, Reduction, masked_tail_scores, tail_scores
from ..models.attention import Attend, StopForward, observing
from ..models.compatibility import ObservedLayers, attention_layers, check_padding, position_limit
from ..models.loading import input_device
from .cache.codec import make_codec
from .cache.evicted import EvictedLayer
from .cache.quantized import QuantizedLayer
from .cache.quantized_slots import QuantizedSlots
from .cache.ragged import RaggedLayer
from .cache.ragged_slots import RaggedSlots
from .scores import pool_kv_scores, select_adaptive, select_uniform
from .sparse_prefill import SparseAttention, select_columns


class Evictor:
    """Observer that scores the pairs of each attention layer and evicts the others from the cache at once.

    Args:
        record: Keep `kept` and `scores` until the end; without, both stay empty.

    Attributes:
        kept: Per layer the result of `select_uniform` or `select_adaptive`.
        scores: Per layer the raw and the pooled scores, float32 [batch, heads, tokens].
    """

    def __init__(
        self,
        view: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        prompt_length: int,
        config: SpecKVConfig,
        is_cancelled: Callable[[], bool],
        record: bool = True,
    ):
        self.kept: dict[int, Tensor] = {}
        self.scores: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_cancelled, self._record, self._name = is_cancelled, record, type(view).__name__
        self._reports = ObservedLayers(view, attention_layers(view), mask.shape[1], mask.shape[1])
        self._cache, self._prompt_length, self._config = cache, prompt_length, config
        self._last_layer = int(view.config.get_text_config().num_hidden_layers) - 1
        self._window = config.resolved_window()
        scored = prompt_length - self._window - 1  # tokens before the window; the last prompt token is fed again
        self._padding = ~mask[:, :scored].bool()
        self._lengths = mask[:, :prompt_length].sum(dim=1)
        self._valid_queries = mask[:, scored:].bool()  # a lookahead that ended early is padded
        self._left_padding = LeftPadding()
        self._tokens_to_crop = mask.shape[1] - (prompt_length - 1)  # the last prompt token and the lookahead
        sharing = getattr(view.config.get_text_config(), "kv_sharing_modes", None) or []
        # Raw scores of layers whose pairs later layers attend to as well. All of these layers score, so eviction waits
        # for the end of the pass. (The model itself holds on to the pairs until then.)
        self._shared_scores: dict[int, list[Tensor]] = {
            layer: [] for layer, mode in enumerate(sharing) if mode == "store"
        }
        self._shared_keys: dict[int, weakref.ref[Tensor]] = {}

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        """Score and evict one layer; see `Observer.observe`."""
        if self._is_cancelled():
            raise StopForward
        if not self._reports.record(layer, query, key, mask):
            raise UnsupportedModelError(
                f"{self._name} mixes the values of a token's KV heads, which may not keep the same tokens. Use SpecPC "
                "in front of it."
            )
        attend: Attend | None = None
        owner = self._owner(layer, key)
        cached = self._cache.layers[owner]
        if isinstance(cached, QuantizedLayer):
            cached.is_attended = cached.keys is key
        if isinstance(cached, EvictedLayer):
            raw = self._score(query, key, mask, scaling, self._scored_heads(cached, key))
            if owner in self._shared_scores:
                self._shared_scores[owner].append(raw)
            else:
                pooled = self._evict(layer, cached, raw)
                if layer != self._last_layer:
                    attend = self._sparse_attention(pooled.expand(-1, key.shape[1], -1), mask, scaling)
        elif isinstance(cached, DynamicSlidingWindowLayer) and owner == layer:  # already small: drop the lookahead only
            cached.crop(-self._tokens_to_crop)
            cached.record_past = False
            assert cached.keys is not None
            assert cached.values is not None
            # a slice would keep all alive
            cached.keys, cached.values = cached.keys.clone(), cached.values.clone()
        if layer == self._last_layer:
            raise StopForward
        return attend

    def finish(self) -> None:
        """Evict from shared layers and remove the lookahead from convolution states, after the pass.

        Raises:
            UnsupportedModelError: some attention was not observed.
        """
        self._reports.check_complete()
        for layer, scores in self._shared_scores.items():
            cached = self._cache.layers[layer]
            if isinstance(cached, EvictedLayer):
                raw = torch.stack(scores)
                self._evict(layer, cached, raw.amax(0) if self._config.reduction_type == "max" else raw.mean(0))
        for state in self._cache.layers:
            if isinstance(state, LinearAttentionLayer):
                state.crop(-self._tokens_to_crop)
                state.record_past = False
                with torch.inference_mode(mode=False):  # it is changed in place later, also outside inference mode
                    state.conv_states = {i: conv.clone() for i, conv in state.conv_states.items() if conv is not None}

    def _owner(self, layer: int, key: Tensor) -> int:
        """The layer whose cached pairs `layer` attends to."""
        if not isinstance(self._cache.layers[layer], DummyLayer):
            if layer in self._shared_scores:
                self._shared_keys[layer] = weakref.ref(key)
            return layer
        for owner, shared in self._shared_keys.items():
            if shared() is key:
                return owner
        raise UnsupportedModelError(
            f"layer {layer} of {self._name} attends to pairs that no layer keeps. Use SpecPC in front of it."
        )

    def _scored_heads(self, cached: EvictedLayer, key: Tensor) -> int:
        """Number of KV heads that select pairs: those that attend, or 1 where all share what is cached (MLA)."""
        assert cached.keys is not None
        heads = cached.keys.shape[1]
        if heads not in (1, key.shape[1]):
            raise UnsupportedModelError(
                f"{self._name} attends with {key.shape[1]} KV heads and caches {heads}. Use SpecPC in front of it."
            )
        if self._config.head_budgets != "uniform" and cached.keys is not key:
            raise UnsupportedModelError(
                f"{self._name} does not attend to what it caches, so its heads cannot keep different "
                "numbers of pairs: set head_budgets='uniform'."
            )
        return heads

    def _score(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, heads: int) -> Tensor:
        """Reduce the attention of the last queries to scores, float32 [batch, heads, prompt - window - 1]."""
        kv_heads = key.shape[1]
        columns = self._prompt_length - self._window - 1
        valid = self._valid_queries.to(query.device)
        reduction: Reduction = "max" if self._config.reduction_type == "max" else "sum"
        first_keys = self._left_padding.first_keys(mask, key, valid) if use_triton(query) else None
        if first_keys is not None:
            scores = tail_scores(query, key, first_keys, valid, columns, scaling, reduction)
        else:
            scores = masked_tail_scores(query, key, mask, valid, columns, scaling, reduction)
        if reduction == "sum":
            scores /= query.shape[1] // kv_heads * valid.sum(dim=1)[:, None, None]
        if heads == kv_heads:
            return scores
        return scores.amax(1, keepdim=True) if self._config.reduction_type == "max" else scores.mean(1, keepdim=True)

    def _evict(self, layer: int, cached: EvictedLayer, raw: Tensor) -> Tensor:
        """Evict the pairs of a layer by raw scores [batch, heads, tokens], and return the pooled scores."""
        config, window = self._config, self._window
        pooled = pool_kv_scores(raw, self._padding.to(raw.device), config.pool_type, config.kernel_size)
        if torch.isnan(pooled).any():
            raise ScoringError(
                "the target model's attention is NaN. Load it with dtype='float32', or check its weights."
            )
        if config.head_budgets == "uniform":
            kept = select_uniform(pooled, self._lengths, config.max_capacity_prompt, window)
            cached.keep(kept, self._prompt_length - 1)
        else:
            assert cached.keys is not None
            assert cached.values is not None
            kept = select_adaptive(pooled, self._lengths, config.max_capacity_prompt, window, config.floor_alpha)
            self._cache.layers[layer] = RaggedLayer(cached.keys, cached.values, kept)
        if self._record:
            self.kept[layer], self.scores[layer] = kept, (raw, pooled)
        return pooled

    def _sparse_attention(self, pooled: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        """The layer's attention with `prefill="sparse"`; None where all prompts are short or the mask is unusual."""
        window, count = self._config.prefill_window_size, self._config.prefill_vertical_size
        if self._config.prefill == "dense" or int(self._lengths.max()) < window + count:
            return None
        if mask is not None and (mask.dtype != torch.bool or mask.shape[1] != 1):
            return None
        lengths = self._lengths.tolist()
        starts = [self._prompt_length - length for length in lengths]
        columns = select_columns(pooled, count)
        return SparseAttention(columns, starts, lengths, pooled.shape[-1], window, count, mask, scaling)


def slots_maker(config: SpecKVConfig) -> MakeSlots | None:
    """How full-attention layers lie in the slots of a running batch; None for plain keys and values."""
    if (settings := config.resolved_quantization()) is not None:
        codec = make_codec(settings)
        return lambda fed: QuantizedSlots(fed, codec)
    return RaggedSlots if config.head_budgets == "adaptive" else None


def new_cache(model: PreTrainedModel, quantization: KVQuantization | None = None) -> DynamicCache:
    """Make an empty cache whose full-attention layers can evict pairs and whose sliding layers can be cropped.

    Args:
        model: The model that fills it.
        quantization: Storage format of the kept pairs in full-attention layers; None for the model's dtype.

    Raises:
        MissingDependencyError: the quantization library is not installed.
        UnsupportedModelError: a layer's state does not consist of KV pairs.
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
                f"{type(model).__name__} has layers of kind {type(layer).__name__}, whose state cannot be partly "
                "evicted. Use SpecPC in front of it."
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
    is_cancelled: Callable[[], bool] = bool,
    position_ids: Tensor | None = None,
    *,
    record: bool = True,
) -> tuple[DynamicCache, Evictor]:
    """Run the target over prompt and lookahead, keeping `max_capacity_prompt` KV pairs per layer and KV head.

    Args:
        view: The target, from `attention_view`.
        input_ids, attention_mask: LongTensor [batch, tokens], padded on the left; tokens > max_capacity_prompt + 1.
        lookahead: Per row a LongTensor [any] in the target's vocabulary; all empty gives SnapKV. Tokens beyond the
            target's window are not used.
        config: Settings.
        is_cancelled: Polled at every layer. True ends the prefill, and the cache is of no use.
        position_ids: LongTensor [batch, tokens], any value at padding; the lookahead continues after each row's last.
            None counts the tokens that are not padding.
        record: Return the selected pairs and the scores, 8 bytes per token, KV head and layer.

    Returns:
        A cache that counts as holding all prompt tokens but the last, ready for `model.generate`; and the evictor with
        the selected pairs of each layer, if recorded.

    Raises:
        ScoringError: the attention is NaN.
        UnsupportedModelError: the target's attention cannot be observed exactly, or as `new_cache`.
    """
    check_padding(view, attention_mask)
    batch, prompt_length = input_ids.shape
    lengths = (attention_mask.sum(dim=1) if position_ids is None else position_ids[:, -1] + 1).tolist()
    if (limit := position_limit(view, max(lengths))) is not None:
        lookahead = [tokens[: limit - length] for tokens, length in zip(lookahead, lengths, strict=True)]
    longest = max(len(tokens) for tokens in lookahead)
    ids = torch.zeros(batch, prompt_length + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[:, :prompt_length], mask[:, :prompt_length] = input_ids, attention_mask
    for row, tokens in enumerate(lookahead):
        ids[row, prompt_length : prompt_length + len(tokens)] = tokens
        mask[row, prompt_length : prompt_length + len(tokens)] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    if position_ids is not None:
        shift = position_ids - positions[:, :prompt_length]
        positions += torch.cat([shift, shift[:, -1:].expand(-1, longest)], dim=1)
    cache = new_cache(view, config.resolved_quantization())
    evictor = Evictor(view, cache, mask, prompt_length, config, is_cancelled, record)
    device = input_device(view)
    with observing(evictor):
        view(
            input_ids=ids.to(device),
            attention_mask=None if bool(mask.all()) else mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor([-1], device=device),  # Gemma 3n and 4 skip queries if given a number
        )
    if not is_cancelled():
        evictor.finish()
    return cache, evictor
