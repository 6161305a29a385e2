"""After eviction the model computes what a full cache computes whose attention is masked to the kept pairs."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from draftapprox_integrations import SpecKVConfig
from draftapprox_integrations.errors import ScoringError
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache.evicted import EvictedLayer
from draftapprox_integrations.speckv.prefill import prefill
from tests.unit.models.test_attention import FAMILIES, TINY

CONFIG = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3)
KEPT: dict[int, Any] = {}  # layer -> (positions [batch, kv_heads, kept], prompt tokens), for the oracle below


def masked_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Any = None,
    **_: Any,
) -> Any:
    """Plain attention; queries from the last prompt token on see only the kept part of the prompt."""
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, 1).transpose(-1, -2) * scaling
    if attention_mask.dtype != torch.bool:
        logits, attention_mask = logits + attention_mask, attention_mask > -1e9
    allowed = attention_mask.expand_as(logits).clone()
    if module.layer_idx in KEPT:
        positions, prompt = KEPT[module.layer_idx]
        keep = torch.zeros(key.shape[0], key.shape[1], key.shape[2], dtype=torch.bool)
        keep.scatter_(2, positions.expand(-1, key.shape[1], -1), True)
        keep[:, :, prompt - 1 :] = True
        allowed[:, :, prompt - 1 :] &= keep.repeat_interleave(group, 1)[:, :, None]
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


def always_a_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> Any:
    return sdpa_mask(*args, allow_is_causal_skip=False, **kwargs)


AttentionInterface.register("test_sdpa_masked", masked_attention)
AttentionMaskInterface.register("test_sdpa_masked", always_a_mask)


def model_of(name: Any, implementation: str = "sdpa") -> Any:
    torch.manual_seed(4)
    settings: dict[str, Any] = TINY | FAMILIES[name]
    if name == "gemma3_text":
        settings |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    config = AutoConfig.for_model(name, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.config._attn_implementation = implementation
    return model


def batch_of(lengths: Any, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids, mask = (
        torch.zeros(len(lengths), longest, dtype=torch.long),
        torch.zeros(len(lengths), longest, dtype=torch.long),
    )
    for row, n in enumerate(lengths):
        ids[row, longest - n :] = torch.randint(0, 128, (n,), generator=generator)
        mask[row, longest - n :] = 1
    lookahead = [torch.randint(0, 128, (3 + row % 2,), generator=generator) for row in range(len(lengths))]
    return ids, mask, lookahead


def positions(mask: Any) -> Any:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def oracle(name: Any, ids: Any, mask: Any, more: Any, kept: Any, prompt: Any) -> Any:
    model = model_of(name, "test_sdpa_masked")
    KEPT.update({layer: (indices, prompt) for layer, indices in kept.items()})
    try:
        whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
        out = model(whole, attention_mask=whole_mask, position_ids=positions(whole_mask), use_cache=False)
    finally:
        KEPT.clear()
    return out.logits[:, prompt - 1 :]


@torch.no_grad()
def decode(model: Any, cache: Any, ids: Any, mask: Any, steps: Any) -> Any:
    """Feed the last prompt token and `steps` (lists of widths) of what follows; logits of all of them."""
    logits, start = [], mask.shape[1] - sum(steps)
    for width in steps:
        stop = start + width
        out = model(
            ids[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions(mask)[:, start:stop],
            past_key_values=cache,
        )
        logits.append(out.logits)
        start = stop
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("lengths", [(40,), (40, 29, 33), (40, 9, 15)], ids=["one", "padded", "some fit whole"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_logits_equal_masked_full_attention(name: Any, lengths: Any) -> None:
    ids, mask, lookahead = batch_of(lengths)
    model = model_of(name)
    cache, evictor = prefill(attention_view(model), ids, mask, lookahead, CONFIG)
    assert cache.get_seq_length() == 39
    full = [layer for layer in cache.layers if isinstance(layer, EvictedLayer)]
    assert all(layer.keys.shape[2] == 14 for layer in full)
    assert len(full) == (2 if name == "gemma3_text" else 4)
    per_head = [evictor.kept[layer][:, head].tolist() for layer in evictor.kept for head in range(2)]
    assert len({str(kept) for kept in per_head}) > 2  # heads and layers do choose differently
    more = torch.randint(0, 128, (len(lengths), 9), generator=torch.Generator().manual_seed(2))
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    # one by one, then a longer piece: what a second turn of a chat feeds
    found = decode(model, cache, whole, whole_mask, [1, 1, 1, 4, 1, 2])
    torch.testing.assert_close(found, oracle(name, ids, mask, more, evictor.kept, 40), rtol=1e-4, atol=1e-4)


def test_a_row_that_fits_whole_drops_nothing() -> None:
    ids, mask, lookahead = batch_of((40, 12))
    _, evictor = prefill(attention_view(model_of("llama")), ids, mask, lookahead, CONFIG)
    for kept in evictor.kept.values():
        assert set(range(28, 39)) <= set(kept[1, 0].tolist())


def test_no_more_than_one_layer_is_held_in_full() -> None:
    ids, mask, lookahead = batch_of((300,))
    view, sizes = attention_view(model_of("llama")), []
    from draftapprox_integrations.speckv import prefill as eviction

    original = EvictedLayer.update

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        sizes.append([layer.keys.shape[2] for layer in caches[0].layers if layer.is_initialized])
        return out

    caches = []
    new_cache = eviction.new_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eviction, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[0])
        patch.setattr(EvictedLayer, "update", update)
        prefill(view, ids, mask, lookahead, CONFIG)
    assert sizes == [[303], [14, 303], [14, 14, 303], [14, 14, 14, 303]]


def test_nothing_after_the_last_layers_scores_is_run() -> None:
    view, reached = attention_view(model_of("llama")), []
    for name, module in view.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: reached.append(name))
    prefill(view, *batch_of((40,)), CONFIG)
    assert "model.layers.3.self_attn.v_proj" in reached
    assert not {"lm_head", "model.layers.3.mlp", "model.layers.3.self_attn.o_proj"} & set(reached)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_rows_of_a_batch_choose_as_alone(reduction: str) -> None:
    config = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3, reduction_type=reduction)
    lengths = (40, 29, 33)
    ids, mask, lookahead = batch_of(lengths)
    view = attention_view(model_of("qwen2"))
    _, together = prefill(view, ids, mask, lookahead, config)
    for row, n in enumerate(lengths):
        _, alone = prefill(view, ids[row : row + 1, 40 - n :], mask[row : row + 1, 40 - n :], [lookahead[row]], config)
        for layer, kept in alone.kept.items():
            assert (kept[0] + 40 - n).tolist() == together.kept[layer][row].tolist()


def test_nan_is_an_error() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0] = torch.nan
    with pytest.raises(ScoringError, match="float32"):
        prefill(attention_view(model), *batch_of((40,)), CONFIG)
