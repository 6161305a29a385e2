"""Exactness of each method with a family: against eager attention, and against a full cache masked to the kept pairs.

The oracles are those of tests/unit/models/test_attention.py and tests/unit/speckv/test_prefill.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, LinearAttentionLayer

from draftapprox_integrations import SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPC, SpecPCConfig
from draftapprox_integrations.errors import UnsupportedModelError
from draftapprox_integrations.models.attention import attention_view, share_weights
from draftapprox_integrations.models.loading import pad_left
from draftapprox_integrations.speckv.cache.ragged import decoding_model
from draftapprox_integrations.speckv.prefill import Evictor, prefill
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.helpers.families import tiny_model
from tests.unit.models.test_attention import eager_importance
from tests.unit.speckv.test_prefill import KEPT, positions

LENGTHS = (40, 29)  # in one batch, so one row is padded
SPECPC = SpecPCConfig(max_capacity_prompt=28, window_size=7, starting_layer_index=1, lookahead_tokens=3)
SPECKV = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3)
NEW = 4
GENERATE: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@lru_cache(maxsize=2)
def model_of(name: str) -> PreTrainedModel:
    model = tiny_model(name)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(2, 100, (length,), generator=generator).tolist() for length in LENGTHS]  # no special ids


def with_attention(model: PreTrainedModel, implementation: str) -> PreTrainedModel:
    """Return the same weights with another attention implementation."""
    other = share_weights(model)
    for module in other.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = implementation
    return other


# ---------------------------------------------------------------- SpecPC


def check_specpc(name: str) -> None:
    """Scores and drafted tokens of a padded batch equal those of each row alone with eager attention."""
    model = model_of(name)
    ids, mask = pad_left(prompts())
    found = SpecPC(model, SPECPC).select(ids, mask)
    eager, layers = with_attention(model, "eager"), observed_layers(model)
    for row, prompt in enumerate(prompts()):
        scores, drafted = eager_importance(eager, torch.tensor(prompt), 7, SPECPC, layers)
        assert scores.max() > 0
        torch.testing.assert_close(found.scores[row, ids.shape[1] - len(prompt) :], scores, rtol=1e-4, atol=1e-4)
        assert found.lookahead_ids[row].tolist() == drafted.tolist()


def check_chunks(name: str) -> None:
    """Scores do not depend on the chunk size."""
    view, (ids, mask) = attention_view(model_of(name)), pad_left(prompts())
    config = replace(SPECPC, lookahead_tokens=None)
    whole = read_importance(view, ids, mask, 7, config).scores
    for chunk in (7, 39):  # a last chunk of several tokens, and of one
        parts = read_importance(view, ids, mask, 7, replace(config, prefill_chunk_size=chunk)).scores
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def observed_layers(model: PreTrainedModel) -> list[int]:
    """The layers whose attention matrices eager attention returns."""
    config = model.config.get_text_config()
    shared = getattr(config, "kv_sharing_modes", None)
    kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
    return [
        layer
        for layer, kind in enumerate(kinds)
        if kind is not LinearAttentionLayer and (kind is not DummyLayer or shared)
    ]


# ---------------------------------------------------------------- SpecKV


def check_speckv(name: str) -> None:
    """Generation after eviction has the logits of a masked full cache; without eviction, the model's own."""
    model, rows = model_of(name), prompts()
    whole = SpecKV(model, model, SpecKVConfig(max_capacity_prompt=64)).generate(rows, max_new_tokens=NEW)
    alone = [model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row)), **GENERATE) for row in rows]
    assert [result.token_ids for result in whole] == [
        out[0, len(row) :].tolist() for out, row in zip(alone, rows, strict=True)
    ]
    assert_exact(model, SPECKV)
    found = SpecKV(model, model, replace(SPECKV, lookahead_tokens=3)).generate(rows, max_new_tokens=NEW)
    assert all(len(result.token_ids) == NEW and result.usage.kept_kv == 14 for result in found)


def check_adaptive(name: str) -> None:
    """The same with adaptive head budgets."""
    assert_exact(model_of(name), replace(SPECKV, head_budgets="adaptive"))


def assert_exact(model: PreTrainedModel, config: SpecKVConfig) -> None:
    ids, mask = pad_left(prompts())
    lookahead = [torch.tensor([5, 6, 7, 8, 9, 10]), torch.tensor([11, 12])]
    cache, evictor = prefill(attention_view(model), ids, mask, lookahead, config)
    assert len(evictor.kept) > 0
    out = decoding_model(model, cache).generate(
        ids, attention_mask=mask, past_key_values=cache, output_logits=True, return_dict_in_generate=True, **GENERATE
    )
    expected = masked_logits(model, out.sequences, mask, evictor)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, rtol=1e-4, atol=1e-4)
    unmasked = masked_logits(model, out.sequences, mask, None)
    assert (unmasked - expected).abs().max() > 0.01  # eviction had an effect


@torch.no_grad()
def masked_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, evictor: Evictor | None) -> Tensor:
    """Logits [batch, new, vocabulary] of a full forward pass whose last tokens see the kept part of the prompt."""
    prompt = mask.shape[1]
    mask = torch.cat([mask, torch.ones(len(ids), ids.shape[1] - prompt, dtype=torch.long)], dim=1)
    if evictor is not None:
        kept = {layer: as_indices(kept) for layer, kept in evictor.kept.items()}
        KEPT.update({layer: (kept[owner], prompt) for layer, owner in owners(model).items() if owner in kept})
    try:
        other = with_attention(model, "test_sdpa_masked")
        out = other(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    finally:
        KEPT.clear()
    return out.logits[:, prompt - 1 : -1]


def as_indices(kept: Tensor) -> Tensor:
    """Budgets per head (bool [batch, kv_heads, tokens]) as indices; short ones repeat the last, which all keep."""
    if kept.dtype != torch.bool:
        return kept
    return torch.arange(kept.shape[2]).where(kept, kept.shape[2] - 1)


def owners(model: PreTrainedModel) -> dict[int, int]:
    """Map each layer to the one whose KV pairs it attends to."""
    config = model.config.get_text_config()
    modes = getattr(config, "kv_sharing_modes", None) or [None] * config.num_hidden_layers
    storing = {config.layer_types[layer]: layer for layer, mode in enumerate(modes) if mode == "store"}
    return {layer: storing[config.layer_types[layer]] if mode == "reuse" else layer for layer, mode in enumerate(modes)}


# ---------------------------------------------------------------- both


def check_speckvpc(name: str) -> None:
    """The cascade's tokens are the most likely ones after SpecPC's selection and SpecKV's eviction."""
    model, rows = model_of(name), prompts()
    config = SpecKVPCConfig(specpc_config=SPECPC, speckv_config=SPECKV)
    found = SpecKV(model, model, config).generate(rows, max_new_tokens=NEW)
    selection = SpecPC(model, SPECPC).select(*pad_left(rows))
    indices = [row - (max(LENGTHS) - length) for row, length in zip(selection.indices, LENGTHS, strict=True)]
    short, mask = pad_left([torch.tensor(row)[keep].tolist() for row, keep in zip(rows, indices, strict=True)])
    _, evictor = prefill(attention_view(model), short, mask, selection.lookahead_ids, SPECKV)
    written = torch.tensor([result.token_ids for result in found])
    expected = masked_logits(model, torch.cat([short, written], dim=1), mask, evictor)
    assert written.tolist() == expected.argmax(-1).tolist()


CHECKS: dict[str, Callable[[str], None]] = {
    "specpc": check_specpc,
    "chunks": check_chunks,
    "speckv": check_speckv,
    "adaptive": check_adaptive,
    "speckvpc": check_speckvpc,
}


def outcome(name: str, method: str) -> str:
    """Return "works", or "refused: ..." with the message; other errors are raised."""
    try:
        CHECKS[method](name)
    except UnsupportedModelError as error:
        return f"refused: {error}"
    return "works"
