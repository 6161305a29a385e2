"""Original positions of kept tokens: equal to a loop without a cache that is given the positions."""

from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from draftapprox_integrations import (
    SpecKV,
    SpecKVConfig,
    SpecKVPCConfig,
    SpecPC,
    SpecPCConfig,
    load_model,
    patch_model,
)
from draftapprox_integrations.engine.registry import as_method, shared_engine
from draftapprox_integrations.errors import InvalidInputError, UnsupportedModelError
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill
from tests.conftest import tiny_llama
from tests.unit.models.test_attention import family
from tests.unit.speckv.test_prefill import KEPT, batch_of, model_of

SPECPC = SpecPCConfig(max_capacity_prompt=30, window_size=6, kernel_size=5)
CASCADE = SpecKVPCConfig(
    specpc_config=SPECPC, speckv_config=SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3)
)
CONFIGS = {"specpc": SPECPC, "cascade": CASCADE}
LENGTHS = [(80,), (80, 61, 25)]  # 25 tokens fit SpecPC's 30
NEW = 8


def prompts_of(lengths: Any) -> Any:
    ids, mask, _ = batch_of(lengths)
    return ids, mask, [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def causal(tokens: Any) -> Any:
    """A mask that transformers takes as it is, so that it infers nothing about positions."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]


@torch.no_grad()
def naive_kept(name: Any, row: Any, positions: Any, lookahead: Any, config: Any) -> Any:
    """SpecKV's selection by loops over eager attention: layer -> LongTensor [1, kv_heads, capacity]."""
    model = model_of(name, "eager")
    whole = torch.cat([row, lookahead])
    at = torch.cat([positions, positions[-1] + 1 + torch.arange(len(lookahead))])
    mask = torch.zeros(1, 1, len(whole), len(whole)).masked_fill(~causal(len(whole)), -torch.inf)
    out = model(whole[None], attention_mask=mask, position_ids=at[None], output_attentions=True, use_cache=False)
    columns, half = len(row) - config.window_size - 1, config.kernel_size // 2
    found = {}
    for layer, attention in enumerate(out.attentions):
        heads = []
        for kv in range(2):
            score = attention[0, 2 * kv : 2 * kv + 2, columns:, :columns].amax(dim=(0, 1)).tolist()
            pooled = [max(score[max(i - half, 0) : i + half + 1]) for i in range(columns)]
            best = sorted(range(columns), key=lambda i: (-pooled[i], i))
            best = best[: config.max_capacity_prompt - config.window_size]
            heads.append(sorted(best + list(range(columns, len(row) - 1))))
        found[layer] = torch.tensor(heads)[None]
    return found


@torch.no_grad()
def naive_answer(name: Any, row: Any, positions: Any, kept: Any) -> Any:
    """Greedy tokens and their logits, one whole forward pass for each; `kept` pairs only, where it is given."""
    model = model_of(name, "test_sdpa_masked" if kept else "sdpa")
    whole, at, logits = row, positions, []
    for _ in range(NEW):
        KEPT.update({layer: (chosen, len(row)) for layer, chosen in kept.items()})
        try:
            out = model(whole[None], attention_mask=causal(len(whole)), position_ids=at[None], use_cache=False)
        finally:
            KEPT.clear()
        logits.append(out.logits[0, -1])
        whole, at = torch.cat([whole, logits[-1].argmax()[None]]), torch.cat([at, at[-1:] + 1])
    return whole[len(row) :].tolist(), torch.stack(logits)


@pytest.mark.parametrize("lengths", LENGTHS, ids=["one", "padded"])
@pytest.mark.parametrize("config", list(CONFIGS.values()), ids=list(CONFIGS))
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_logits_and_tokens_equal_a_loop_that_is_told_the_positions(name: str, config: Any, lengths: Any) -> None:
    _, _, rows = prompts_of(lengths)
    target, draft = model_of(name), family("qwen3", "sdpa")
    seen = []
    found = SpecKV(target, draft, config, positions="original").generate(
        rows, max_new_tokens=NEW, logits_processor=[lambda _, scores: seen.append(scores.clone()) or scores]
    )
    ours = torch.stack(seen, dim=1)
    for index, row in enumerate(rows):
        lookahead_tokens = NEW if config is CASCADE else None  # lookahead queries score the prompt too
        selection = SpecPC(draft, SPECPC).select(torch.tensor([row]), lookahead_tokens=lookahead_tokens)
        indices = selection.indices[0]
        if len(row) > 30:
            assert len(indices) == 30
            assert indices[-1] == len(row) - 1
            assert (indices.diff() > 1).any()
        short, kept = torch.tensor(row)[indices], {}
        if config is CASCADE:
            lookahead = torch.tensor(found[index].lookahead_ids)
            assert len(lookahead) == NEW
            kept = naive_kept(name, short, indices, lookahead, CASCADE.speckv_config)
        expected, logits = naive_answer(name, short, indices, kept)
        assert found[index].token_ids == expected
        torch.testing.assert_close(ours[index], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", list(CONFIGS.values()), ids=list(CONFIGS))
def test_a_row_of_a_batch_a_stream_and_the_drop_in_write_the_same(
    tiny_tokenizer: PreTrainedTokenizerFast, config: Any
) -> None:
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    draft = tiny_llama(num_hidden_layers=2, hidden_size=32, head_dim=8)
    engine = SpecKV((target, tiny_tokenizer), (draft, tiny_tokenizer), config, positions="original")
    ids, mask, rows = prompts_of((80, 61, 25))
    together = engine.generate(rows, max_new_tokens=NEW)
    for row, found in zip(rows, together, strict=True):
        assert engine.generate(row, max_new_tokens=NEW)[0].token_ids == found.token_ids
        assert "".join(engine.stream(row, max_new_tokens=NEW)) == found.text
    patched = patch_model(target, draft, config, positions="original")
    out = patched.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    with pytest.raises(InvalidInputError, match="use_cache cannot be used"):
        patched.generate(ids, attention_mask=mask, max_new_tokens=NEW, use_cache=False)
    assert torch.equal(out[:, :80], ids)
    assert out[:, 80:].tolist() == [found.token_ids for found in together]


def test_renumbering_is_the_default_and_prompts_that_fit_are_left_alone() -> None:
    _, _, rows = prompts_of((80,))
    target, draft = model_of("llama"), family("qwen3", "sdpa")

    def first_logits(row: Any, **changes: Any) -> Any:
        seen = []
        SpecKV(target, draft, SPECPC, **changes).generate(
            row, max_new_tokens=1, logits_processor=[lambda _, scores: seen.append(scores.clone()) or scores]
        )
        return seen[0]

    default, renumbered = first_logits(rows[0]), first_logits(rows[0], positions="renumber")
    assert torch.equal(default, renumbered)
    assert (default - first_logits(rows[0], positions="original")).abs().max() > 0.1
    assert torch.equal(first_logits(rows[0][:25]), first_logits(rows[0][:25], positions="original"))


def test_the_lookahead_goes_on_after_the_prompts_last_position() -> None:
    ids, mask, lookahead = batch_of((20, 14))
    view, seen = attention_view(model_of("llama")), []
    handle = view.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    positions = torch.zeros_like(ids)
    positions[0], positions[1, 6:] = torch.arange(20) * 3, torch.arange(14) + 5
    prefill(view, ids, mask, lookahead, CASCADE.speckv_config, position_ids=positions)
    handle.remove()
    assert seen[0]["position_ids"][0].tolist() == [
        *range(0, 60, 3),
        58,
        59,
        60,
        60,
    ]  # 3 drafted, padded to 4
    assert seen[0]["position_ids"][1, 6:].tolist() == list(range(5, 23))


def test_the_whole_prompt_must_fit_the_window() -> None:
    target, draft = model_of("llama"), tiny_llama(vocab_size=128)
    row = [3] * 500
    with pytest.raises(InvalidInputError, match="500 tokens.*beyond its window of 512 with 13.*'renumber'"):
        SpecKV(target, draft, SPECPC, positions="original").generate(row, max_new_tokens=13)
    patched = patch_model(target, draft, SPECPC, positions="original")
    with pytest.raises(InvalidInputError, match="beyond its window of 512"):
        patched.generate(torch.tensor([row]), max_new_tokens=13)
    SpecKV(target, draft, SPECPC, positions="original").generate(row, max_new_tokens=12)
    SpecKV(target, draft, SPECPC).generate(row, max_new_tokens=13)


def test_a_model_without_positions_is_refused() -> None:
    target = BloomForCausalLM(BloomConfig(vocab_size=128, hidden_size=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM cannot be told positions"):
        SpecKV(target, family("qwen3", "sdpa"), SPECPC, positions="original")
    with pytest.raises(InvalidInputError, match="position_ids cannot be used"):
        SpecKV(model_of("llama"), family("qwen3", "sdpa"), SPECPC).generate([1, 2], position_ids=torch.arange(2)[None])


@pytest.mark.parametrize("make", [SpecKV, patch_model, lambda *args, **kw: shared_engine(*args, **kw)])
def test_positions_that_mean_nothing_are_refused(make: Any) -> None:
    target, draft = model_of("llama"), family("qwen3", "sdpa")
    with pytest.raises(InvalidInputError, match="positions='original' needs SpecPC"):
        make(target, draft, SpecKVConfig(), positions="original")
    for config in (SpecKVConfig(), SPECPC, CASCADE):
        with pytest.raises(InvalidInputError, match="positions must be one of 'renumber', 'original'; got 'old'"):
            make(target, draft, config, positions="old")


def test_shared_engines_differ_by_positions() -> None:
    target, draft = model_of("llama"), family("qwen3", "sdpa")
    original = shared_engine(target, draft, SPECPC, positions="original")
    assert original.positions == "original"
    assert shared_engine(target, draft, SPECPC, positions="original") is original
    assert shared_engine(target, draft, SPECPC).positions == "renumber"


def test_a_saved_cascade_is_loaded_from_dicts() -> None:
    saved = {"specpc_config": {"max_capacity_prompt": 30}, "speckv_config": {"kernel_size": 3}}
    config = SpecKVPCConfig(
        specpc_config=SpecPCConfig(max_capacity_prompt=30), speckv_config=SpecKVConfig(kernel_size=3)
    )
    assert as_method("speckvpc", saved) == ("speckvpc", config)
    with pytest.raises(ValueError, match="speckv_config must be a SpecKVConfig; got SpecPCConfig"):
        SpecKVPCConfig(speckv_config=SPECPC)


def test_the_loader_gives_models_whose_positions_count() -> None:
    """A position beyond the last is not the same as one that was counted: the models of these tests can tell."""
    target = load_model(model_of("qwen2")).model
    ids = torch.arange(10)[None]
    with torch.no_grad():
        counted = target(ids, attention_mask=causal(10)).logits
        gap = target(ids, attention_mask=causal(10), position_ids=torch.tensor([[*range(9), 20]])).logits
    assert (counted[0, -1] - gap[0, -1]).abs().max() > 0.1
