"""Scores of the last queries: the kernels against the PyTorch form, and that against a matrix of softmax weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftapprox_integrations import SpecKVConfig, SpecPCConfig
from draftapprox_integrations.kernels import tail_scores as module
from draftapprox_integrations.kernels.tail_scores import (
    LeftPadding,
    causal_mask,
    masked_tail_scores,
    tail_attention,
    tail_scores,
    torch_form,
)
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.conftest import tiny_llama
from tests.unit.kernels.conftest import DEVICE


def by_definition(
    query: Any, key: Any, first_keys: Any, weights: Any, columns: Any, scaling: Any, reduction: Any
) -> Any:
    rows, total, group = weights.shape[1], key.shape[2], query.shape[1] // key.shape[1]
    keys = key.float().repeat_interleave(group, 1)
    logits = query[:, :, -rows:].float() @ keys.transpose(-1, -2) * scaling
    allowed = torch.ones(rows, total, dtype=torch.bool, device=DEVICE).tril(total - rows)
    allowed = allowed & (torch.arange(total, device=DEVICE) >= first_keys[:, None, None, None])
    attention = logits.masked_fill(~allowed, -torch.inf).softmax(-1)[..., :columns]
    attention = attention.nan_to_num(0.0) * weights[:, None, :, None]
    attention = attention.unflatten(1, (-1, group)).flatten(2, 3)
    return attention.amax(2) if reduction == "max" else attention.sum(2)


def case(batch: Any, kv_heads: Any, group: Any, new: Any, total: Any, head_dim: Any, dtype: Any) -> Any:
    """Query and key as views of larger tensors, so that their outer strides are no products of sizes."""
    query = torch.randn(batch, new, kv_heads * group, head_dim, device=DEVICE).to(dtype).transpose(1, 2)
    key = torch.randn(batch, kv_heads, total + 3, head_dim, device=DEVICE).to(dtype)[:, :, :total]
    return query, key


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "rows", "dtype", "reduction"),
    [
        (2, 3, 80, 5, torch.float32, "max"),
        (2, 3, 80, 5, torch.bfloat16, "sum"),
        (1, 16, 24, 7, torch.float32, "sum"),
        (1, 16, 24, 7, torch.float16, "max"),
        (1, 1, 256, 1, torch.bfloat16, "max"),
        (3, 2, 16, 20, torch.float16, "sum"),
    ],
    ids=str,
)
def test_kernels_equal_the_definition(
    kv_heads: int, group: int, head_dim: int, rows: int, dtype: Any, reduction: Any
) -> None:
    torch.manual_seed(0)
    query, key = case(2, kv_heads, group, 30, 150, head_dim, dtype)
    first_keys = torch.tensor([0, 70], device=DEVICE)
    weights = torch.ones(1, rows, dtype=torch.bool, device=DEVICE).expand(2, -1)
    args = query, key, first_keys, weights, 150 - rows, 0.2, reduction
    expected = by_definition(*args)
    for form in (torch_form, tail_scores):
        torch.testing.assert_close(form(*args), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kernels_equal_the_definition_for_any_padding(data: st.DataObject) -> None:
    batch, kv_heads, group = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    total = data.draw(st.integers(1, 140))
    new = data.draw(st.integers(1, total))
    rows, columns = data.draw(st.integers(1, min(new, 40))), data.draw(st.integers(0, total))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    query, key = case(batch, kv_heads, group, new, total, 20, torch.float32)
    first_keys = torch.randint(0, total, (batch,), device=DEVICE)
    weights = torch.rand(batch, rows, device=DEVICE) * (torch.rand(batch, rows, device=DEVICE) > 0.3)
    position = torch.arange(total - rows, total, device=DEVICE)
    weights *= position >= first_keys[:, None]  # padding has no weight
    for reduction in ("max", "sum"):
        args = query, key, first_keys, weights, columns, 0.5, reduction
        expected = by_definition(*args)
        for form in (torch_form, tail_scores):
            torch.testing.assert_close(form(*args), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_nan_of_a_query_that_counts_is_not_hidden(reduction: Any) -> None:
    query, key = case(1, 1, 2, 9, 9, 16, torch.float32)
    query[:, 1, -2] = torch.nan
    weights = torch.ones(1, 4, device=DEVICE)
    for factor, hidden in ((1.0, False), (0.0, True)):
        weights[:, 2] = factor
        for form in (torch_form, tail_scores):
            found = form(query, key, torch.zeros(1, dtype=torch.long, device=DEVICE), weights, 5, 1.0, reduction)
            assert found.isnan().any() == (not hidden)


@pytest.mark.parametrize("budget", [1, 100, 1 << 22])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_tail_attention_in_pieces_equals_softmax(budget: Any, masked: str | None) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 9, 8), torch.randn(2, 3, 14, 8)
    allowed = torch.ones(9, 14, dtype=torch.bool).tril(5).repeat(2, 1, 1, 1)
    if masked is not None:
        allowed[0, :, :, :3] = False
    mask = {
        None: None,
        "bool": allowed,
        "float": torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf),
    }[masked]
    logits = query @ key.repeat_interleave(2, dim=1).transpose(-1, -2) * 0.3
    expected = logits.masked_fill(~allowed, -torch.inf).softmax(-1)[:, :, -4:]
    found = torch.full_like(expected, torch.nan)
    for heads, rows, weights in tail_attention(query, key, mask, 0.3, 4, budget):
        found[:, heads, rows] = weights
        assert budget > 100 or weights.numel() <= 2 * 2 * 14
    torch.testing.assert_close(found, expected)
    for reduction, reduced in (("max", expected.amax(2)), ("sum", expected.sum(2))):
        reduced = reduced.unflatten(1, (3, 2)).amax(2) if reduction == "max" else reduced.unflatten(1, (3, 2)).sum(2)
        scores = masked_tail_scores(query, key, mask, torch.ones(2, 4), 14, 0.3, reduction)
        torch.testing.assert_close(scores, reduced)


class TestLeftPadding:
    weights = torch.ones(2, 3)
    key = torch.empty(2, 1, 8, 4)
    first = torch.tensor([0, 5])

    def read(self, mask: Any, weights: Any = None) -> Any:
        return LeftPadding().first_keys(mask, self.key, self.weights if weights is None else weights)

    def test_no_mask(self) -> None:
        assert self.read(None).tolist() == [0, 0]

    def test_causal_after_padding(self) -> None:
        assert self.read(causal_mask(self.first, 8, 8)).tolist() == [0, 5]
        assert self.read(causal_mask(self.first[:1], 3, 8)).tolist() == [0, 0]

    def test_a_lookahead_that_ended_early(self) -> None:
        mask = causal_mask(self.first, 8, 8)
        mask[0, :, :, 7] = False  # a padded key, which only its own query and padded ones could see
        assert self.read(mask) is None
        assert self.read(mask, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [0, 5]

    def test_anything_else(self) -> None:
        mask = causal_mask(self.first, 8, 8)
        assert self.read(torch.zeros(2, 1, 8, 8)) is None
        assert self.read(mask.repeat(1, 2, 1, 1)) is None
        sliding = mask & (torch.arange(8) > torch.arange(8)[:, None] - 4)
        assert self.read(sliding) is None
        mask[0, 0, 6, 3] = False
        assert self.read(mask) is None

    def test_a_mask_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        padding, mask = LeftPadding(), causal_mask(self.first, 8, 8)
        padding.first_keys(mask, self.key, self.weights)
        monkeypatch.setattr(module, "_read_left_padding", None)
        assert padding.first_keys(mask, self.key, self.weights).tolist() == [0, 5]


def padded_batch() -> Any:
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 500, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[1, :11] = 0
    return ids, mask


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_evicts_the_same_pairs(reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view, (ids, mask) = attention_view(tiny_llama().to(DEVICE)), padded_batch()
    lookahead = [torch.arange(10, 14), torch.arange(20, 22)]
    config = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3, reduction_type=reduction)
    _, found = prefill(view, ids, mask, lookahead, config)
    monkeypatch.setattr("draftapprox_integrations.speckv.prefill.use_triton", lambda tensor: False)
    _, expected = prefill(view, ids, mask, lookahead, config)
    for layer, (raw, _) in expected.scores.items():
        torch.testing.assert_close(found.scores[layer][0], raw, rtol=1e-4, atol=1e-6)
        assert found.kept[layer].equal(expected.kept[layer])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("reduction", "chunk"), [("max", 16), ("mean", None), ("mean", 16)])
def test_reads_the_same_importance(reduction: Any, chunk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view, (ids, mask) = attention_view(tiny_llama().to(DEVICE)), padded_batch()
    config = SpecPCConfig(lookahead_tokens=3, reduction_type=reduction, weighted_query=True, prefill_chunk_size=chunk)
    found = read_importance(view, ids, mask, 6, config)
    monkeypatch.setattr("draftapprox_integrations.specpc.scoring.attention_scores.use_triton", lambda tensor: False)
    expected = read_importance(view, ids, mask, 6, config)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
