"""Adaptive head budgets (Ada-KV) in the engine."""

import math
import threading
from typing import Any

import pytest
import torch

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPCConfig, patch_model
from draftapprox_integrations.decoding.buffered import RESERVE
from draftapprox_integrations.llama_index import SpecKVLLM
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache.ragged import RaggedLayer, decoding_model
from draftapprox_integrations.speckv.prefill import prefill
from tests.conftest import Golden
from tests.unit.engine.test_golden import CASES
from tests.unit.speckv.test_prefill import batch_of, model_of

TIGHT: dict[str, Any] = {"max_capacity_prompt": 24, "window_size": 8, "lookahead_tokens": 6}
ADAPTIVE = SpecKVConfig(**TIGHT, head_budgets="adaptive")
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. Today it is a small museum. " * 3
PROMPTS = [LONG, LONG[40:], "Bread is baked at five."]


# ---------------------------------------------------------------- recorded cases and settings


@pytest.mark.parametrize("name", CASES)
def test_with_a_floor_of_one_the_recorded_cases_stay_as_they_are(golden: Golden, name: Any) -> None:
    case = golden.case(name)
    config = SpecKVConfig(**case["config"], head_budgets="adaptive", floor_alpha=1)
    target = golden.model(case["target_model"])
    ids, lookahead = torch.tensor([case["prompt_ids"]]), torch.tensor(case["expected"]["lookahead_ids"])
    view = attention_view(target)
    cache, evictor = prefill(view, ids, torch.ones_like(ids), [lookahead], config)
    uniform, expected = prefill(view, ids, torch.ones_like(ids), [lookahead], SpecKVConfig(**case["config"]))
    for layer, positions in expected.kept.items():
        assert [row.nonzero().flatten().tolist() for row in evictor.kept[layer][0]] == positions[0].tolist()
        assert torch.equal(cache.layers[layer].kept_keys, uniform.layers[layer].keys.flatten(0, 2))
    (found,) = SpecKV(target, golden.model(case["draft_model"]), config).generate(
        case["prompt_ids"], max_new_tokens=case["max_new_tokens"]
    )
    if case["stability"]["kept_unique"]:
        assert found.token_ids == case["expected"]["output_ids"]


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("head_budgets", "ada", "'uniform', 'adaptive'"),
        ("floor_alpha", -0.1, "[0, 1]"),
        ("floor_alpha", 1.5, "[0, 1]"),
        ("floor_alpha", True, "[0, 1]"),
        ("floor_alpha", math.nan, "[0, 1]"),
        ("floor_alpha", "0.2", "[0, 1]"),
    ],
)
def test_a_bad_setting_names_field_value_and_limit(field: str, value: Any, limit: str) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        SpecKVConfig(**{field: value})
    assert repr(value) in str(caught.value)
    assert limit in str(caught.value)


# ---------------------------------------------------------------- the engine


def written(engine: Any, prompts: Any, **options: Any) -> Any:
    return [found.token_ids for found in engine.generate(prompts, max_new_tokens=12, **options)]


def test_a_floor_of_one_writes_what_uniform_budgets_write_and_a_lower_one_does_not(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    uniform = written(SpecKV(*pair, SpecKVConfig(**TIGHT)), PROMPTS)
    even = SpecKVConfig(**TIGHT, head_budgets="adaptive", floor_alpha=1)
    assert written(SpecKV(*pair, even), PROMPTS) == uniform
    engine = SpecKV(*pair, ADAPTIVE)
    assert written(engine, PROMPTS) != uniform
    assert written(engine, PROMPTS) == [written(engine, prompt)[0] for prompt in PROMPTS]
    usage = engine.generate(LONG, max_new_tokens=2)[0].usage
    assert usage.kept_kv == 24


def test_what_fits_is_what_generate_writes(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target = pair[0]
    roomy = SpecKV(*pair, SpecKVConfig(max_capacity_prompt=4000, head_budgets="adaptive"))
    ids = torch.tensor([target.tokenizer(LONG)["input_ids"]])
    out = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert written(roomy, LONG) == [out[0, ids.shape[1] :].tolist()]


def test_stop_strings_streams_and_seeds(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, ADAPTIVE)
    full = engine.generate(LONG, max_new_tokens=30)[0].text
    stop = full[7:12]
    (found,) = engine.generate(LONG, max_new_tokens=30, stop=[stop])
    assert (found.text, found.finish_reason) == (full[: full.index(stop)], "stop")
    assert "".join(engine.stream(LONG, max_new_tokens=30, stop=[stop])) == found.text
    sampled: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "seed": 3}
    assert written(engine, LONG, **sampled) == written(engine, LONG, **sampled) != written(engine, LONG)


def test_settings_of_the_model_made_after_its_view_are_followed(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target = pair[0]
    free = written(SpecKV(*pair, ADAPTIVE), LONG)[0]
    kept = target.model.generation_config
    try:
        target.model.generation_config = type(kept)(**kept.to_diff_dict() | {"eos_token_id": [free[4]]})
        (found,) = SpecKV(*pair, ADAPTIVE).generate(LONG, max_new_tokens=12)
    finally:
        target.model.generation_config = kept
    assert found.token_ids == free[: free.index(free[4]) + 1]
    assert found.finish_reason == "stop"


def test_the_model_is_left_alone(pair: tuple[LoadedModel, LoadedModel]) -> None:
    model = pair[0].model
    ids = torch.tensor([pair[0].tokenizer(LONG)["input_ids"]])
    before, config = set(model.__dict__), model.config.to_dict()
    weights = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    written(SpecKV(*pair, ADAPTIVE), PROMPTS)
    assert set(model.__dict__) == before
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert all(id(value) == weights[name][0] for name, value in model.named_parameters())
    assert all(torch.equal(value, weights[name][1]) for name, value in model.named_parameters())
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


def test_the_bytes_held_after_generate_are_those_of_kept_and_written_tokens(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    ids, mask, lookahead = batch_of((40, 29, 33))
    model = model_of("llama")
    cache, evictor = prefill(attention_view(model), ids, mask, lookahead, ADAPTIVE)
    decoder = decoding_model(model, cache)
    decoder.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for layer, kept in evictor.kept.items():
        held = cache.layers[layer]
        for pairs in (held.kept_keys, held.kept_values):
            assert pairs.untyped_storage().nbytes() == 4 * 16 * int(kept.sum())
        assert held.keys.shape[2] == 6  # the last prompt token, which is fed again, and all new ones but the last
        assert held.keys.untyped_storage().nbytes() <= 4 * 16 * 3 * 2 * (6 + RESERVE)


@pytest.mark.thorough
def test_threads_with_other_settings_do_not_meet() -> None:
    """On one view, without the engine's lock: their steps do interleave."""
    model = model_of("llama")
    view = attention_view(model)
    configs = [
        SpecKVConfig(**TIGHT | {"max_capacity_prompt": 14 + 2 * (i // 3)}, head_budgets=budgets, floor_alpha=alpha)
        for i, (budgets, alpha) in enumerate([("adaptive", 0.0), ("adaptive", 0.5), ("uniform", 0.2)] * 2)
    ]

    def run(config: Any) -> Any:
        ids, mask, lookahead = batch_of((40, 29, 33))
        cache, _ = prefill(view, ids, mask, lookahead, config)
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        out = decoding_model(model, cache).generate(ids, attention_mask=mask, past_key_values=cache, **options)
        return out.tolist(), [isinstance(layer, RaggedLayer) for layer in cache.layers]

    expected = [run(config) for config in configs]
    assert len({str(out) for out, _ in expected}) > 3
    found = {}
    threads = [
        threading.Thread(target=lambda i=i, config=config: found.update({i: [run(config) for _ in range(3)]}))
        for i, config in enumerate(configs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [value] * 3 for i, value in enumerate(expected)}


@pytest.mark.parametrize("cascade", [False, True])
def test_the_drop_in_writes_what_the_engine_writes(pair: tuple[LoadedModel, LoadedModel], cascade: bool) -> None:
    config: SpecKVConfig | SpecKVPCConfig = ADAPTIVE
    if cascade:
        config = SpecKVPCConfig(
            specpc_config=SpecPCConfig(max_capacity_prompt=60, window_size=8), speckv_config=ADAPTIVE
        )
    target, draft = pair
    ids = torch.tensor([target.tokenizer(LONG)["input_ids"]])
    before = set(target.model.__dict__)
    patched = patch_model(target.model, draft.model, config)
    out = patched.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert out[0, ids.shape[1] :].tolist() == written(SpecKV(target, draft, config), LONG)[0]
    assert set(target.model.__dict__) == before


def test_the_llm_classes_take_it_and_save_it(pair: tuple[LoadedModel, LoadedModel]) -> None:
    llm = SpecKVLLM(SpecKV(*pair, ADAPTIVE), max_tokens=12)
    assert llm.complete(LONG, formatted=True).text == SpecKV(*pair, ADAPTIVE).generate(LONG, max_new_tokens=12)[0].text
    saved = SpecKVLLM("default", config=SpecKVConfig(head_budgets="adaptive", floor_alpha=0.35)).to_dict()
    assert (saved["config"]["head_budgets"], saved["config"]["floor_alpha"]) == ("adaptive", 0.35)
    assert SpecKVLLM.from_dict(saved).config == SpecKVConfig(head_budgets="adaptive", floor_alpha=0.35)
