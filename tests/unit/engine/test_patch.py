"""`patch_model`: the usage examples of the paper's repository, with only the import changed."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPCConfig, patch_model
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import GOLDEN, tiny_llama

TARGET = GOLDEN / "models" / "llama_target"


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """The examples' `model` and `draft_model`, loaded as there; tiny, but with the 8 layers that SpecPC's skips."""
    model_kwargs: dict[str, Any] = {"torch_dtype": "auto", "attn_implementation": "sdpa"}
    tiny_llama(vocab_size=256, num_hidden_layers=10, hidden_size=32, head_dim=8).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(TARGET, **model_kwargs)
    return model, AutoModelForCausalLM.from_pretrained(tmp_path, **model_kwargs)


def prompt(tokens: Any) -> Any:
    return torch.randint(2, 256, (1, tokens), generator=torch.Generator().manual_seed(7))


def fingerprint(model: Any) -> Any:
    config = (model.config.to_dict(), model.generation_config.to_dict(), set(model.__dict__), type(model))
    return config, {name: (id(value), value.sum().item()) for name, value in model.named_parameters()}


def check(model: Any, patched: Any, inputs: Any, out: Any, config: Any, draft_model: Any) -> None:
    """The output is the prompt and 32 new tokens, those of the engine."""
    assert patched is not model
    assert torch.equal(out.sequences[:, : inputs.shape[1]], inputs)
    assert torch.equal(out.input_ids, inputs)
    assert torch.equal(out.output_ids, out.sequences[:, inputs.shape[1] :])
    (expected,) = SpecKV(model, draft_model, config).generate(inputs, max_new_tokens=32)
    assert out.output_ids[0].tolist() == expected.token_ids
    assert expected.usage.kept_prompt_tokens < inputs.shape[1] or expected.usage.kept_kv < inputs.shape[1]


def test_the_readme_of_the_paper_speckv(loaded: Any) -> None:
    model, draft_model = original, _ = loaded
    inputs, before = prompt(500), fingerprint(model)

    speckv_config = SpecKVConfig(
        max_capacity_prompt=256,
        window_size=32,
        pool_type="max",
        kernel_size=7,
        reduction_type="max",
        lookahead_tokens=None,
        prefill_window_size=2048,
        prefill_vertical_size=2048,
    )
    model = patch_model(model, draft_model, speckv_config)
    out = model.generate(inputs, max_new_tokens=32, return_dict_in_generate=True)

    check(original, model, inputs, out, speckv_config, draft_model)
    assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {256 + 32}
    assert fingerprint(original) == before


def test_the_readme_of_the_paper_specpc(loaded: Any) -> None:
    model, draft_model = original, _ = loaded
    inputs, before = prompt(1500), fingerprint(model)

    specpc_config = SpecPCConfig(
        max_capacity_prompt=1024,
        window_size=64,
        pool_type="max",
        kernel_size=64,
        reduction_type="max",
        lookahead_tokens=1,
        neighbor_tokens=64,
        starting_layer_index=8,
        weighted_query=True,
    )
    model = patch_model(model, draft_model, specpc_config)
    out = model.generate(inputs, max_new_tokens=32, return_dict_in_generate=True)

    check(original, model, inputs, out, specpc_config, draft_model)
    assert fingerprint(original) == before


def test_the_readme_of_the_paper_speckvpc(loaded: Any) -> None:
    model, draft_model = original, _ = loaded
    inputs, before = prompt(500), fingerprint(model)

    speckvpc_config = SpecKVPCConfig(
        specpc_config=SpecPCConfig(
            max_capacity_prompt=2048,
            window_size=64,
            pool_type="max",
            kernel_size=64,
            reduction_type="max",
            lookahead_tokens=8,
            neighbor_tokens=64,
            starting_layer_index=8,
            weighted_query=True,
        ),
        speckv_config=SpecKVConfig(
            max_capacity_prompt=256,
            window_size=32,
            pool_type="max",
            kernel_size=7,
            reduction_type="max",
            prefill_window_size=2048,
            prefill_vertical_size=2048,
        ),
    )
    model = patch_model(model, draft_model, speckvpc_config)
    out = model.generate(inputs, max_new_tokens=32, return_dict_in_generate=True)

    check(original, model, inputs, out, speckvpc_config, draft_model)
    assert fingerprint(original) == before


def test_the_notebooks_of_the_paper_pass_what_a_tokenizer_returns(
    pair: tuple[LoadedModel, LoadedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    target, draft = pair
    model = patch_model(target.model, draft.model, SpecKVConfig(max_capacity_prompt=24, lookahead_tokens=4))
    encoded = tiny_tokenizer("The old mill stands by the river. It was built in 1821. " * 3, return_tensors="pt")
    inputs: dict[str, Any] = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    options: dict[str, Any] = {
        "max_new_tokens": 5,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    options |= {"return_dict_in_generate": True, "pad_token_id": 0}
    with torch.inference_mode():
        unpacked, whole = model.generate(**inputs, **options), model.generate(inputs, **options)
    assert unpacked.output_ids.shape == (1, 5)
    assert torch.equal(unpacked.output_ids, whole.output_ids)


@pytest.mark.parametrize("head_budgets", ["uniform", "adaptive"])
def test_the_patched_model_follows_its_own_generation_config(loaded: Any, head_budgets: str) -> None:
    model, draft_model = loaded
    config = SpecKVConfig(max_capacity_prompt=64, lookahead_tokens=4, head_budgets=head_budgets)
    patched = patch_model(model, draft_model, config)
    free = patched.generate(prompt(200), max_new_tokens=12)[0, 200:].tolist()
    patched.generation_config.eos_token_id = free[4]
    assert patched.generate(prompt(200), max_new_tokens=12)[0, 200:].tolist() == free[: free.index(free[4]) + 1]
    assert model.generation_config.eos_token_id != free[4]


def test_several_patched_models_of_one_live_side_by_side_and_are_collected(loaded: Any) -> None:
    model, draft_model = loaded
    ids, plain = prompt(200), model.generate(prompt(200), max_new_tokens=8)
    roomy = patch_model(model, draft_model, SpecKVConfig(max_capacity_prompt=400))
    tight = patch_model(model, draft_model, SpecKVConfig(max_capacity_prompt=16, lookahead_tokens=4))
    assert torch.equal(roomy.generate(ids, max_new_tokens=8), plain)
    assert not torch.equal(tight.generate(ids, max_new_tokens=8), plain)
    assert torch.equal(model.generate(ids, max_new_tokens=8), plain)
    gone = weakref.ref(tight)
    del tight
    gc.collect()
    assert gone() is None


def test_what_cannot_be_patched(loaded: Any) -> None:
    model, draft_model = loaded
    with pytest.raises(InvalidInputError, match="config must be a SpecKVConfig.*got dict"):
        patch_model(model, draft_model, {"max_capacity_prompt": 256})
    with pytest.raises(InvalidInputError, match=r"needs input_ids of shape \[batch, tokens\]"):
        patch_model(model, draft_model, SpecKVConfig()).generate(max_new_tokens=3)
