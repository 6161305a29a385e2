"""Observed attention against the eager implementation of transformers, family by family."""

import threading
from itertools import chain
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from draftapprox_integrations import SpecPCConfig
from draftapprox_integrations.errors import ScoringError, UnsupportedModelError
from draftapprox_integrations.models.attention import StopForward, attention_view, observing
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.conftest import tiny_llama

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, Any] = {
    "llama": {"head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16},
    "phi3": {},
}


def family(name: Any, implementation: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(name, **(TINY | FAMILIES[name]))
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def eager_importance(model: Any, row: Any, window: Any, config: Any, layers: Any = None) -> Any:
    """What the docs say, written as loops over the attention matrices that eager attention returns.

    `layers` are those that have attention, if not all.
    """
    ids = row[None]
    prompt, drafted = len(row), []
    total = torch.zeros(prompt)
    start = config.resolved_start(model.config.get_text_config().num_hidden_layers)
    for step in range(config.lookahead_tokens):
        with torch.no_grad():
            out = model(ids, output_attentions=True)
        attentions = [attention for attention in out.attentions if attention is not None]
        for layer, matrices in zip(layers or range(len(attentions)), attentions, strict=True):
            if layer < start:
                continue
            attention = matrices[0]  # [heads, queries, keys]
            rows = attention[:, -window:] if step == 0 else attention[:, -1:]
            if step == 0 and config.weighted_query and window > 1:
                rows = rows * torch.linspace(0, 1, window)[None, :, None]
            rows = rows[..., :prompt]
            if config.reduction_type == "max":
                total = torch.maximum(total, rows.amax(dim=(0, 1)))
            else:
                total = total + rows.sum(dim=(0, 1))
        drafted.append(out.logits[0, -1].argmax())
        ids = torch.cat([ids, drafted[-1].view(1, 1)], dim=1)
    return total, torch.stack(drafted)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_scores_equal_eager_attention(name: Any, reduction: str) -> None:
    config = SpecPCConfig(reduction_type=reduction, lookahead_tokens=3, starting_layer_index=1)
    lengths = [40, 29, 33]
    rows = [torch.randint(0, 128, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    eager = family(name, "eager")
    expected = [eager_importance(eager, row, 7, config) for row in rows]
    batch, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, 40 - len(row) :], mask[i, 40 - len(row) :] = row, 1
    view = attention_view(family(name, "sdpa"))
    found = read_importance(view, batch, mask, 7, config)
    for i, (scores, drafted) in enumerate(expected):
        torch.testing.assert_close(found.scores[i, 40 - lengths[i] :], scores, rtol=1e-4, atol=2e-5)
        assert found.lookahead_ids[i].tolist() == drafted.tolist()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_chunked_prefill_equals_one_pass(name: Any) -> None:
    view = attention_view(family(name, "sdpa"))
    ids = torch.randint(0, 128, (2, 50), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    whole = read_importance(view, ids, mask, 11, SpecPCConfig())
    for chunk in (1, 7, 49):
        parts = read_importance(view, ids, mask, 11, SpecPCConfig(prefill_chunk_size=chunk))
        torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=2e-5)


def test_the_model_is_left_alone() -> None:
    model = tiny_llama()
    ids = torch.arange(20)[None]
    before = {name: id(getattr(module, "forward", None).__func__) for name, module in model.named_modules()}
    with torch.no_grad():
        logits = model(ids).logits
    view = attention_view(model)
    assert attention_view(model) is view
    read_importance(view, ids, torch.ones_like(ids), 4, SpecPCConfig())
    assert model.config._attn_implementation == "sdpa"
    assert {name: id(module.forward.__func__) for name, module in model.named_modules()} == before
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    pairs = zip(chain(model.parameters(), model.buffers()), chain(view.parameters(), view.buffers()), strict=True)
    assert all(a is b for a, b in pairs)


class Counter:
    def __init__(self, stop_at: Any = None) -> None:
        self.layers: list[Any] = []
        self.stop_at = stop_at

    def observe(self, layer: Any, query: Any, key: Any, mask: Any, scaling: Any) -> None:
        self.layers.append(layer)
        if layer == self.stop_at:
            raise StopForward


def test_observing_ends_with_the_block_even_after_an_exception() -> None:
    view, ids, counter = attention_view(tiny_llama()), torch.arange(9)[None], Counter()
    with pytest.raises(IndexError), observing(counter):
        view(torch.tensor([[9999]]))  # no such token
    with observing(counter):
        view(ids)
    view(ids)
    assert counter.layers == [0, 1, 2, 3]


def test_other_threads_are_not_observed() -> None:
    view, ids, counter = attention_view(tiny_llama()), torch.arange(9)[None], Counter()
    with observing(counter):
        thread = threading.Thread(target=lambda: view(ids))
        thread.start()
        thread.join()
    assert counter.layers == []


def test_stop_forward_runs_nothing_further() -> None:
    view, counter, reached = attention_view(tiny_llama()), Counter(stop_at=2), []
    handles = [
        module.register_forward_hook(lambda module, args, out, name=name: reached.append(name))
        for name, module in view.named_modules()
    ]
    with observing(counter):
        view(torch.arange(9)[None])
    for handle in handles:
        handle.remove()
    assert counter.layers == [0, 1, 2]
    assert "model.layers.1.mlp" in reached
    assert not any(
        name.startswith(("model.layers.2.mlp", "model.layers.3", "model.norm", "lm_head")) for name in reached
    )


def test_no_lm_head_and_no_last_mlp_when_nothing_is_drafted() -> None:
    view, reached = attention_view(tiny_llama()), []
    for name, module in view.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: reached.append(name))
    ids = torch.arange(30)[None]
    found = read_importance(view, ids, torch.ones_like(ids), 5, SpecPCConfig(), draft_tokens=False)
    assert found.lookahead_ids is None
    assert "model.layers.3.self_attn.k_proj" in reached
    assert not {"lm_head", "model.layers.3.mlp", "model.layers.3.self_attn.o_proj"} & set(reached)


def test_eos_ends_a_row_but_not_its_neighbours() -> None:
    model = tiny_llama()
    view = attention_view(model)
    ids = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(8))
    mask = torch.ones_like(ids)
    config = SpecPCConfig(lookahead_tokens=5)
    free = read_importance(view, ids, mask, 6, config)
    end = int(free.lookahead_ids[0][1])
    assert end not in free.lookahead_ids[1].tolist()
    try:
        view.generation_config.eos_token_id = [end]
        stopped = read_importance(view, ids, mask, 6, config)
    finally:
        view.generation_config.eos_token_id = 1
    assert stopped.lookahead_ids[0].tolist() == free.lookahead_ids[0][:2].tolist()
    torch.testing.assert_close(stopped.scores[1], free.scores[1])
    shorter = read_importance(view, ids[:1], mask[:1], 6, SpecPCConfig(lookahead_tokens=2))
    torch.testing.assert_close(stopped.scores[0], shorter.scores[0])


def test_soft_capped_attention_is_refused() -> None:
    config = Gemma2Config(**(TINY | {"head_dim": 16, "attn_logit_softcapping": 5.0}))
    model = Gemma2ForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError, match="Choose another draft"):
        read_importance(
            attention_view(model), torch.arange(9)[None], torch.ones(1, 9, dtype=torch.long), 3, SpecPCConfig()
        )


def test_attention_sinks_are_refused() -> None:
    config = AutoConfig.for_model(
        "gpt_oss", **(TINY | {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1})
    )
    with pytest.raises(UnsupportedModelError, match="Choose another draft"):
        read_importance(
            attention_view(AutoModelForCausalLM.from_config(config).eval()),
            torch.arange(9)[None],
            torch.ones(1, 9, dtype=torch.long),
            3,
            SpecPCConfig(),
        )


def test_nan_weights_are_an_error_that_says_what_to_do() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(ScoringError, match="dtype='float32'"):
        read_importance(
            attention_view(model), torch.arange(30)[None], torch.ones(1, 30, dtype=torch.long), 4, SpecPCConfig()
        )
