"""The recorded results of the reference implementation (tests/golden/README.md)."""

from typing import Any

import pytest
import torch

from draftapprox_integrations import SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPC, SpecPCConfig, patch_model
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill
from tests.conftest import GOLDEN, Golden

CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("speckv_*.json"))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 18


def padded(ids: Any, by: Any) -> Any:
    row = torch.tensor([[0] * by + ids])
    mask = torch.ones_like(row)
    mask[0, :by] = 0
    return row, mask


@pytest.mark.parametrize("pad", [0, 5, 200])
@pytest.mark.parametrize("name", CASES)
def test_kept_pairs_and_scores(golden: Golden, name: Any, pad: int) -> None:
    case = golden.case(name)
    config = SpecKVConfig(**case["config"])
    ids, mask = padded(case["prompt_ids"], pad)
    lookahead = torch.tensor(case["expected"]["lookahead_ids"])
    _, evictor = prefill(attention_view(golden.model(case["target_model"])), ids, mask, [lookahead], config)
    atol = 2e-5 if config.reduction_type == "max" else 1e-6
    for layer, expected in enumerate(case["expected"]["kept_indices"]):
        raw, pooled = (scores[0, :, pad:] for scores in evictor.scores[layer])
        for found, tensor in ((raw, "scores_raw"), (pooled, "scores_pooled")):
            torch.testing.assert_close(found, golden.tensors[f"{name}/{tensor}"][layer], rtol=1e-4, atol=atol)
        kept = (evictor.kept[layer][0] - pad).tolist()
        if case["stability"]["kept_unique"]:
            assert kept == expected
            continue
        window = list(range(len(case["prompt_ids"]) - config.window_size - 1, len(case["prompt_ids"]) - 1))
        for head, positions in enumerate(kept):  # exact ties: only what lies above the boundary is determined
            boundary = pooled[head].topk(config.max_capacity_prompt - config.window_size).values[-1]
            above = (pooled[head] > boundary + 1e-6).nonzero().flatten().tolist()
            assert set(above) | set(window) <= set(positions)
            assert all(pooled[head][p] >= boundary - 1e-6 for p in positions if p < window[0])
            assert len(set(positions)) == config.max_capacity_prompt


@pytest.mark.parametrize("name", CASES)
def test_lookahead_and_output(golden: Golden, name: Any) -> None:
    case = golden.case(name)
    engine = SpecKV(
        golden.model(case["target_model"]), golden.model(case["draft_model"]), SpecKVConfig(**case["config"])
    )
    (found,) = engine.generate(case["prompt_ids"], max_new_tokens=case["max_new_tokens"])
    assert found.lookahead_ids == case["expected"]["lookahead_ids"]
    assert found.usage.prompt_tokens == case["prompt_len"]
    assert found.usage.kept_kv == case["config"]["max_capacity_prompt"]
    if case["stability"]["kept_unique"]:
        assert found.token_ids == case["expected"]["output_ids"]


CASCADES = sorted(path.stem for path in (GOLDEN / "cases").glob("speckvpc_*.json"))


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("name", CASCADES)
def test_the_cascade(golden: Golden, name: Any, pad: int) -> None:
    case = golden.case(name)
    expected, settings = case["expected"], case["config"]
    config = SpecKVPCConfig(
        specpc_config=SpecPCConfig(**settings["specpc_config"]),
        speckv_config=SpecKVConfig(**settings["speckv_config"]),
    )
    target, draft = golden.model(case["target_model"]), golden.model(case["draft_model"])
    ids, mask = padded(case["prompt_ids"], pad)
    lookahead = torch.tensor(expected["lookahead_ids"])

    selection = SpecPC(draft, config.specpc_config).select(ids, mask)
    assert [(row - pad).tolist() for row in selection.indices] == [expected["selected_indices"]]
    short = ids[:, selection.indices[0]]
    _, evictor = prefill(attention_view(target), short, torch.ones_like(short), [lookahead], config.speckv_config)
    assert [evictor.kept[layer][0].tolist() for layer in range(len(expected["kept_indices"]))] == expected[
        "kept_indices"
    ]

    (found,) = SpecKV(target, draft, config).generate(case["prompt_ids"], max_new_tokens=case["max_new_tokens"])
    assert found.lookahead_ids == expected["lookahead_ids"]
    assert found.token_ids == expected["output_ids"]
    assert found.usage.prompt_tokens == case["prompt_len"]
    assert found.usage.kept_prompt_tokens == len(expected["selected_indices"])
    assert found.usage.kept_kv == config.speckv_config.max_capacity_prompt

    patched = patch_model(target, draft, config)
    out = patched.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert out[0].tolist() == [0] * pad + case["prompt_ids"] + expected["output_ids"]


def test_all_cascades_are_here() -> None:
    assert len(CASCADES) == 6


def test_the_drop_in_of_the_papers_repository(golden: Golden) -> None:
    case = golden.case("speckv_03")
    model, draft = golden.model(case["target_model"]), golden.model(case["draft_model"])
    ids = torch.tensor([case["prompt_ids"]])
    before = set(model.__dict__)
    patched = patch_model(model, draft, SpecKVConfig(**case["config"]))
    out = patched.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    more = patched.generate(
        input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, return_dict_in_generate=True
    )
    assert out[0, : ids.shape[1]].tolist() == case["prompt_ids"]
    assert out[0, ids.shape[1] :].tolist() == more.sequences[0, ids.shape[1] :].tolist()
    assert out[0, ids.shape[1] :].tolist() == case["expected"]["output_ids"]
    assert set(model.__dict__) == before
    assert model.config._attn_implementation == "sdpa"


def test_the_drop_in_with_specpc(golden: Golden) -> None:
    case = golden.case("specpc_01")
    ids = torch.tensor([case["prompt_ids"]])
    patched = patch_model(
        golden.model(case["target_model"]), golden.model(case["draft_model"]), SpecPCConfig(**case["config"])
    )
    out = patched.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert out[0].tolist() == case["prompt_ids"] + case["expected"]["output_ids"]
