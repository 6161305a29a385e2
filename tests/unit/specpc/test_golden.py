"""The recorded results of the reference implementation (tests/golden/README.md)."""

from typing import Any

import pytest
import torch

from draftapprox_integrations import SpecPC, SpecPCConfig
from tests.conftest import GOLDEN, Golden

CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("specpc_*.json"))
RTOL, ATOL = 1e-4, 2e-5


def run(golden: Golden, name: Any, **changes: Any) -> Any:
    case = golden.case(name)
    config = SpecPCConfig(**(case["config"] | changes))
    return case, SpecPC(golden.model(case["draft_model"]), config).select(torch.tensor([case["prompt_ids"]]))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 28


@pytest.mark.parametrize("name", CASES)
def test_selection_scores_and_lookahead(golden: Golden, name: Any) -> None:
    case, selection = run(golden, name)
    expected, stability = case["expected"], case["stability"]
    kept = selection.indices[0].tolist()
    if stability["selection_unique"]:
        assert kept == expected["selected_indices"]
    else:  # exact ties: the reference itself may choose either
        assert len(kept) == len(expected["selected_indices"])
        assert set(stability["always_selected"]) <= set(kept)
    torch.testing.assert_close(selection.scores[0], golden.tensors[f"{name}/attn_per_key"], rtol=RTOL, atol=ATOL)
    assert selection.lookahead_ids[0].tolist() == expected["lookahead_ids"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["specpc_02", "specpc_07", "specpc_13", "specpc_19"])
@pytest.mark.parametrize("chunk", [1, 37, 64])
def test_chunked_prefill_changes_nothing(golden: Golden, name: str, chunk: int) -> None:
    case, selection = run(golden, name, prefill_chunk_size=chunk)
    assert selection.indices[0].tolist() == case["expected"]["selected_indices"]
    torch.testing.assert_close(selection.scores[0], golden.tensors[f"{name}/attn_per_key"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", ["specpc_02", "specpc_07", "specpc_10", "specpc_16", "specpc_22"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone(golden: Golden, name: str, side: str) -> None:
    case = golden.case(name)
    ids = torch.tensor(case["prompt_ids"])
    other = torch.randint(0, 256, (len(ids) + 23,), generator=torch.Generator().manual_seed(1))
    batch, mask = torch.zeros(2, len(other), dtype=torch.long), torch.zeros(2, len(other), dtype=torch.long)
    place = slice(23, None) if side == "left" else slice(0, len(ids))
    batch[0, place], mask[0, place], batch[1], mask[1] = ids, 1, other, 1
    selection = SpecPC(golden.model(case["draft_model"]), SpecPCConfig(**case["config"])).select(batch, mask)
    kept = selection.indices[0]
    assert batch[0][kept].tolist() == ids[case["expected"]["selected_indices"]].tolist()
    assert (kept - place.start).tolist() == case["expected"]["selected_indices"]
    reference = golden.tensors[f"{name}/attn_per_key"]
    torch.testing.assert_close(selection.scores[0][place], reference, rtol=RTOL, atol=ATOL)
    assert selection.scores[0][mask[0] == 0].eq(0).all()
    assert selection.lookahead_ids[0].tolist() == case["expected"]["lookahead_ids"]


@pytest.mark.parametrize("name", ["specpc_01", "specpc_08", "specpc_23"])
def test_the_target_continues_as_recorded(golden: Golden, name: str) -> None:
    case, selection = run(golden, name)
    target = golden.model(case["target_model"])
    prompt = torch.tensor([case["prompt_ids"]])[:, selection.indices[0]]
    out = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert out[0, prompt.shape[1] :].tolist() == case["expected"]["output_ids"]
