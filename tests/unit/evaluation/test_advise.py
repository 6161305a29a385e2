"""Estimates: bytes and parameters are those of real models; times follow from them."""

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from draftapprox_integrations import SpecKV, SpecKVConfig
from draftapprox_integrations.errors import InvalidInputError, ModelLoadError
from draftapprox_integrations.evaluation.advise import DEVICES, Sizes, advise, as_rows
from tests.conftest import tiny_llama


def test_sizes_are_those_of_the_model(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    sizes = Sizes.of(model.config, bytes_per_value=4)
    assert sizes.parameters == model.num_parameters()
    assert sizes.weight_bytes == sum(value.numel() * 4 for value in model.parameters())
    engine = SpecKV((model, tiny_tokenizer), "self", SpecKVConfig(max_capacity_prompt=24, window_size=8))
    usage = engine.generate("The old mill stands by the river. " * 8, max_new_tokens=2)[0].usage
    assert sizes.pair_bytes * 24 == usage.kept_kv_bytes


def test_experts_that_a_token_does_not_pass_are_not_active() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    sizes = Sizes.of(config)
    experts = 2 * 8 * 3 * 32 * 48
    assert sizes.parameters == MixtralForCausalLM(config).num_parameters()
    assert sizes.parameters - sizes.active == experts * 6 // 8 + 64 * 32


def test_sliding_windows_keep_a_fixed_number_of_pairs() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=100,
    )  # fmt: skip
    kinds = config.layer_types
    sizes = Sizes.of(config)
    pair = 2 * 2 * 16 * 2
    assert sizes.pair_bytes == pair * kinds.count("full_attention")
    assert sizes.fixed_bytes == pair * 100 * kinds.count("sliding_attention")


def test_longer_prompts_pay_more_and_smaller_caches_serve_more() -> None:
    large = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    small = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    target, draft, device = Sizes.of(large), Sizes.of(small), DEVICES["H100"]
    assert 7.5e9 < target.parameters < 8.5e9
    found = {one.method: one for one in advise(target, draft, 65_536, device, speckv=[256], specpc=[2048])}
    assert list(found) == ["full", "speckv 256", "specpc 2048", "speckvpc 2048 256"]
    full = found["full"]
    assert full.cache_bytes == 65_536 * 32 * 8 * 128 * 2 * 2
    assert found["speckv 256"].cache_bytes == 256 * 131_072
    assert found["speckv 256"].first_token > full.first_token > found["specpc 2048"].first_token
    assert found["speckv 256"].requests > 50 * full.requests > 0
    assert found["speckvpc 2048 256"].per_token < full.per_token
    ratios = []
    for context in (4096, 32_768):
        one = advise(target, draft, context, device, specpc=[1024])
        ratios.append(one[2].first_token / one[0].first_token)
    assert ratios[1] < ratios[0] < 1
    assert as_rows(list(found.values()))[0]["x full"] == 1.0


def test_bad_input() -> None:
    sizes = Sizes.of(tiny_llama().config)
    with pytest.raises(InvalidInputError, match="context must be >= 1"):
        advise(sizes, sizes, 0, DEVICES["L4"])
    with pytest.raises(ModelLoadError, match="config of no/such-model"):
        Sizes.of("no/such-model")
    assert torch.get_default_device() == torch.device("cpu")
