"""The sparse prefill's kernel against its PyTorch form, whose oracle is in tests/unit/speckv/test_sparse_prefill.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from draftapprox_integrations import SpecKVConfig
from draftapprox_integrations.kernels.vertical_slash import torch_form, vertical_slash
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill
from tests.conftest import tiny_llama
from tests.unit.kernels.conftest import DEVICE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def columns_of(kv_heads: Any, tokens: Any, count: Any) -> Any:
    rows = [torch.randperm(tokens)[:count].sort().values for _ in range(kv_heads)]
    return torch.stack(rows).to(DEVICE)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("tokens", "window", "count", "heads", "kv_heads", "head_dim", "value_dim", "dtype"),
    [
        (1, 1, 1, 2, 2, 16, 16, torch.float32),
        (1, 1, 1, 6, 2, 80, 24, torch.bfloat16),
        (150, 1, 5, 6, 2, 80, 24, torch.bfloat16),
        (150, 40, 90, 2, 2, 16, 16, torch.bfloat16),
        (150, 40, 90, 3, 1, 80, 24, torch.float32),
        (70, 70, 3, 6, 2, 80, 24, torch.float32),
        (90, 200, 0, 2, 2, 16, 16, torch.bfloat16),
    ],
    ids=str,
)
def test_kernel_equals_the_pytorch_form(
    tokens: int, window: int, count: int, heads: int, kv_heads: int, head_dim: int, value_dim: int, dtype: Any
) -> None:
    torch.manual_seed(0)
    query = torch.randn(tokens, heads, head_dim, device=DEVICE).to(dtype).transpose(0, 1)
    key, value = (torch.randn(kv_heads, tokens + 4, d, device=DEVICE).to(dtype)[:, 4:] for d in (head_dim, value_dim))
    columns = columns_of(kv_heads, tokens, count)
    found = vertical_slash(query, key, value, columns, window, 0.3)
    expected = torch_form(query.float(), key.float(), value.float(), columns, window, 0.3)
    assert found.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("kernels")
def test_sparse_prefill_keeps_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    view = attention_view(tiny_llama().to(DEVICE))
    ids, mask = torch.randint(5, 500, (2, 60)), torch.ones(2, 60, dtype=torch.long)
    mask[1, :13] = 0
    config = SpecKVConfig(
        max_capacity_prompt=14, window_size=4, kernel_size=3, prefill="sparse", prefill_window_size=7,
        prefill_vertical_size=9,
    )  # fmt: skip
    cache, found = prefill(view, ids, mask, [torch.arange(10, 14)] * 2, config)
    monkeypatch.setattr("draftapprox_integrations.speckv.sparse_prefill.vertical_slash", torch_form)
    other, expected = prefill(view, ids, mask, [torch.arange(10, 14)] * 2, config)
    for layer, kept in expected.kept.items():
        assert found.kept[layer].equal(kept)
        torch.testing.assert_close(cache.layers[layer].values, other.layers[layer].values, rtol=1e-4, atol=1e-5)
