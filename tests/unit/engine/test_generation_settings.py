"""Settings of `model.generate` that a shortened prompt or cache cannot honour: refused or left out, never silent."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecPCConfig, load_model, patch_model
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import tiny_llama

TIGHT = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
CONFIGS: dict[str, Any] = {
    "speckv": TIGHT,
    "adaptive": SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6, head_budgets="adaptive"),
    "specpc": SpecPCConfig(max_capacity_prompt=30, window_size=6, kernel_size=5),
}
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. Today it is a small museum. " * 3
SHORT = "The bridge"  # fits every budget
NEW = 10

# Other ways to decode, other caches, other loops: a cache that is filled already can honour none of them.
UNUSABLE: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_return_sequences": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"force_words_ids": [[[5]]]},
    {"constraints": [5]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 2},
    {"use_mtp": True},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"cache_implementation": "offloaded"},
    {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
    {"token_healing": True},
]
# Harmless from a caller of the patched model, which returns what they ask for. The engine has no place for it.
OWN = [
    *UNUSABLE,
    {"is_assistant": True, "assistant_confidence_threshold": 0.99},
    {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True},
    {"stop_strings": ["e", "a", " "]},
    {"max_length": 20},
    {"prefill_chunk_size": 4},
]
ids_of = lambda case: "+".join(case)  # noqa: E731


def model_with(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> LoadedModel:
    model = tiny_llama(eos_token_id=None)
    model.generation_config.eos_token_id = None
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return load_model((model, tokenizer))


def draft_with(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> LoadedModel:
    model = tiny_llama(num_hidden_layers=2, hidden_size=32, head_dim=8)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return load_model((model, tokenizer))


def patched_tokens(target: LoadedModel, draft: LoadedModel, config: Any, text: str, **options: Any) -> list[int]:
    ids = torch.tensor([target.require_tokenizer()(text)["input_ids"]])
    out = patch_model(target.model, draft.model, config).generate(ids, max_new_tokens=NEW, **options)
    return (out if isinstance(out, torch.Tensor) else out.sequences)[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def clean(tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What models without settings of their own answer: both prompts together and the long one alone by config, and
    the short one by `model.generate`."""
    target, draft = model_with(tiny_tokenizer), draft_with(tiny_tokenizer)
    ids = torch.tensor([tiny_tokenizer(SHORT)["input_ids"]])
    found: dict[str, Any] = {"plain": target.model.generate(ids, max_new_tokens=NEW)[0, ids.shape[1] :].tolist()}
    for name, config in CONFIGS.items():
        engine = SpecKV(target, draft, config)
        both = engine.generate([LONG, SHORT], max_new_tokens=NEW)
        found[name] = both, engine.generate(LONG, max_new_tokens=NEW)[0].token_ids
    return found


@pytest.mark.parametrize("settings", OWN, ids=ids_of)
def test_what_the_models_own_config_asks_for_is_left_out(
    tiny_tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], clean: dict[str, Any]
) -> None:
    own_target, own_draft = model_with(tiny_tokenizer, **settings), draft_with(tiny_tokenizer, **settings)
    before = copy.deepcopy(own_target.model.generation_config.to_dict())
    plain = clean["plain"]
    for name, config in CONFIGS.items():
        expected, alone = clean[name]
        own = SpecKV(own_target, own_draft, config)
        found = own.generate([LONG, SHORT], max_new_tokens=NEW)
        assert [g.token_ids for g in found] == [g.token_ids for g in expected], name
        assert [g.finish_reason for g in found] == [g.finish_reason for g in expected], name
        assert [g.lookahead_ids for g in found] == [g.lookahead_ids for g in expected], name
        assert own.generate(SHORT, max_new_tokens=NEW)[0].token_ids == plain, name
        assert patched_tokens(own_target, own_draft, config, LONG) == alone, name
        assert patched_tokens(own_target, own_draft, config, SHORT) == plain, name
    assert own_target.model.generation_config.to_dict() == before


@pytest.mark.parametrize("settings", UNUSABLE, ids=ids_of)
def test_what_the_caller_asks_for_is_refused_by_name(
    pair: tuple[LoadedModel, LoadedModel], settings: dict[str, Any]
) -> None:
    name = next(iter(settings))
    engine = SpecKV(*pair, TIGHT)
    rest = {key: value for key, value in settings.items() if key != "top_k"}
    for text in (LONG, SHORT):
        with pytest.raises(InvalidInputError, match=rf"{name}.* cannot be used with a shortened prompt or cache"):
            engine.generate(text, max_new_tokens=2, **rest)
        given = GenerationConfig()
        for key, value in settings.items():
            setattr(given, key, value)
        for options in (settings, {"generation_config": given}):
            with pytest.raises(InvalidInputError, match=rf"{name}.* cannot be used with a shortened prompt or cache"):
                patched_tokens(*pair, TIGHT, text, **options)
    assert engine.generate(SHORT, max_new_tokens=2)


def test_arguments_that_are_no_settings_are_refused_too(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, draft = pair
    filled = target.model(torch.tensor([[5, 6]])).past_key_values
    refused: dict[str, Any] = {
        "assistant_model": draft.model,
        "custom_generate": lambda *_, **__: None,
        "past_key_values": filled,
    }
    for name, value in refused.items():
        with pytest.raises(InvalidInputError, match=f"{name}.* cannot be used"):
            patched_tokens(target, draft, TIGHT, LONG, **{name: value})
        with pytest.raises(InvalidInputError, match=f"{name}.* cannot be used"):
            SpecKV(target, draft, TIGHT).generate(LONG, **{name: value})
    with pytest.raises(InvalidInputError, match="stop_strings needs tokenizer"):
        patched_tokens(target, draft, TIGHT, LONG, stop_strings=["e"])
    for name in ("max_length", "output_scores", "return_dict_in_generate", "inputs"):
        with pytest.raises(InvalidInputError, match=f"{name} cannot be used with SpecKV"):
            SpecKV(target, draft, TIGHT).generate(LONG, **{name: 100})


def test_values_that_change_nothing_pass_the_patched_model(pair: tuple[LoadedModel, LoadedModel]) -> None:
    neutral: dict[str, Any] = {
        "num_beams": 1, "num_return_sequences": None, "use_cache": True, "cache_implementation": "dynamic",
        "penalty_alpha": 0.0, "prompt_lookup_num_tokens": None, "past_key_values": DynamicCache(), "use_mtp": False,
    }  # fmt: skip
    for text in (LONG, SHORT):
        expected = SpecKV(*pair, TIGHT).generate(text, max_new_tokens=NEW)[0].token_ids
        assert patched_tokens(*pair, TIGHT, text, **neutral) == expected


def test_a_given_config_completes_the_models_own(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = draft_with(tiny_tokenizer)
    target = model_with(tiny_tokenizer, repetition_penalty=1.7, num_beams=3)
    clean = model_with(tiny_tokenizer, repetition_penalty=1.7)
    for text in (LONG, SHORT):
        expected = SpecKV(clean, draft, TIGHT).generate(text, max_new_tokens=6, suppress_tokens=[9, 10])[0].token_ids
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        config = GenerationConfig(max_new_tokens=6, suppress_tokens=[9, 10])
        out = patch_model(target.model, draft.model, TIGHT).generate(ids, generation_config=config)
        assert out[0, ids.shape[1] :].tolist() == expected
        assert config.num_beams is None


@pytest.mark.parametrize("where", ["caller", "given", "own"])
@pytest.mark.parametrize("extra", [-50, 0, 4])
def test_lengths_count_the_whole_prompt_after_specpc(
    tiny_tokenizer: PreTrainedTokenizerFast, where: str, extra: int
) -> None:
    """`min_length` as `model.generate` counts it: prompt included, also where most of it was dropped."""
    ids = torch.tensor([tiny_tokenizer(LONG)["input_ids"]])
    lengths = {"min_length": ids.shape[1] + extra, "max_length": ids.shape[1] + NEW}
    target, draft = model_with(tiny_tokenizer), draft_with(tiny_tokenizer)
    free = SpecKV(target, draft, CONFIGS["specpc"]).generate(LONG, max_new_tokens=NEW)[0].token_ids
    target = model_with(tiny_tokenizer, eos_token_id=free[1], **(lengths if where == "own" else {}))
    options: dict[str, Any] = lengths if where == "caller" else {}
    if where == "given":
        options = {"generation_config": GenerationConfig(**lengths)}
    engine = SpecKV(target, draft, CONFIGS["specpc"])
    (expected,) = engine.generate(LONG, max_new_tokens=NEW, min_new_tokens=max(extra, 0))
    out = patch_model(target.model, draft.model, CONFIGS["specpc"]).generate(ids, **options)
    assert out[0, ids.shape[1] :].tolist() == expected.token_ids
    assert (len(expected.token_ids) == 2) == (extra <= 0)
    own = {} if where == "own" else {"min_length": lengths["min_length"]}
    assert engine.generate(LONG, max_new_tokens=NEW, **own)[0].token_ids == expected.token_ids
