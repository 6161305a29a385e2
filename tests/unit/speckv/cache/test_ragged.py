"""Ragged heads: attention equals a full cache's masked to the kept pairs; bytes are those of kept and later tokens."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from draftapprox_integrations import SpecKVConfig
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache import ragged
from draftapprox_integrations.speckv.cache.evicted import EvictedLayer
from draftapprox_integrations.speckv.cache.ragged import RaggedLayer, attend_per_head
from draftapprox_integrations.speckv.prefill import prefill
from tests.unit.models.test_attention import FAMILIES
from tests.unit.speckv.test_prefill import KEPT, batch_of, decode, model_of, oracle, positions

ADAPTIVE = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3, head_budgets="adaptive")


def as_indices(kept: Any) -> Any:
    """What the oracle takes: rectangular, the missing ones filled up with the last position, which every head keeps."""
    return {layer: torch.arange(k.shape[2]).where(k, k.shape[2] - 1) for layer, k in kept.items()}


def held(cache: Any) -> Any:
    """Numbers of all tensors that the ragged layers hold."""
    return [
        sum(value.numel() for value in vars(layer).values() if isinstance(value, torch.Tensor))
        for layer in cache.layers
        if isinstance(layer, RaggedLayer)
    ]


def fake_kernel(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    softmax_scale: Any = None,
    causal: bool = False,
) -> Any:
    """flash_attn_varlen_func as its documentation says it: one sequence after the other, causal to the lower right."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
    assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype)
    for (a, b), (c, d) in zip(*(s.unfold(0, 2, 1).tolist() for s in (cu_seqlens_q, cu_seqlens_k)), strict=True):
        logits = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d].expand(-1, q.shape[1], -1)) * softmax_scale
        if causal:
            logits = logits.where(torch.ones(b - a, d - c).tril(d - c - (b - a)).bool(), -torch.inf)
        out[a:b] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v[c:d].expand(-1, q.shape[1], -1))
    return out


@pytest.mark.parametrize("flash", [False, True], ids=["sdpa", "varlen kernel"])
@pytest.mark.parametrize("lengths", [(40,), (40, 29, 33), (40, 9, 2)], ids=["one", "padded", "some fit whole"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_logits_equal_masked_full_attention(
    name: Any, lengths: Any, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    if flash:
        kernel = lambda *args, **options: calls.append(1) or fake_kernel(*args, **options)  # noqa: E731
        monkeypatch.setattr(ragged, "varlen_kernel", lambda query, mask: kernel if mask is None else None)
    ids, mask, lookahead = batch_of(lengths)
    view = attention_view(model_of(name))
    cache, evictor = prefill(view, ids, mask, lookahead, ADAPTIVE)
    layers = [layer for layer in cache.layers if isinstance(layer, RaggedLayer)]
    assert len(layers) == len(evictor.kept) == (2 if name == "gemma3_text" else 4)
    assert not any(isinstance(layer, EvictedLayer) for layer in cache.layers)
    counts = [kept.sum(-1) for kept in evictor.kept.values()]
    assert any(len(set(count[0].tolist())) > 1 for count in counts)  # heads do get different budgets
    assert all(int(count[0].sum()) == 14 * 2 for count in counts)
    head_dim = layers[0].keys.shape[-1]
    assert held(cache) == [2 * head_dim * int(count.sum()) for count in counts]
    assert {(layer.get_seq_length(), layer.get_mask_sizes(3)) for layer in layers} == {(39, (3, 39))}
    assert cache.get_seq_length() == 39
    more = torch.randint(0, 128, (len(lengths), 9), generator=torch.Generator().manual_seed(2))
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    steps = [1, 1, 1, 4, 1, 2]  # one by one, then longer pieces: what a second turn of a chat feeds
    found = decode(view, cache, whole, whole_mask, steps)
    expected = oracle(name, ids, mask, more, as_indices(evictor.kept), 40)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert held(cache) == [2 * head_dim * (int(count.sum()) + 2 * 10 * len(lengths)) for count in counts]
    assert len(calls) == (4 * len(layers) if flash else 0)


@pytest.mark.parametrize("first", [1, 5])
def test_a_second_turn_with_padding_of_its_own(first: int) -> None:
    ids, mask, lookahead = batch_of((40, 29, 33))
    view = attention_view(model_of("llama"))
    cache, evictor = prefill(view, ids, mask, lookahead, ADAPTIVE)
    more = torch.randint(0, 128, (3, 9), generator=torch.Generator().manual_seed(2))
    turn = torch.ones_like(more)
    turn[1, 2:5] = 0  # the second row's turn is shorter
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, turn], 1)
    found = decode(view, cache, whole, whole_mask, [first, 10 - first])
    assert cache.layers[0].get_mask_sizes(1) == (11, 39)
    model = model_of("llama", "test_sdpa_masked")
    KEPT.update({layer: (indices, 40) for layer, indices in as_indices(evictor.kept).items()})
    with torch.no_grad():
        full = model(whole, attention_mask=whole_mask, position_ids=positions(whole_mask), use_cache=False).logits
    KEPT.clear()
    seen = whole_mask[:, 39:].bool()
    torch.testing.assert_close(found[seen], full[:, 39:][seen], rtol=1e-4, atol=1e-4)


def test_a_masks_kind_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 9, 3, 7]
    query = torch.randn(2, 6, 3, 8, generator=generator)
    keys, values = (torch.randn(24, 8, generator=generator) for _ in range(2))
    causal = attend_per_head(query, keys, values, lengths, None, 0.3)
    as_bool = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    as_float = torch.zeros(2, 1, 3, 3).masked_fill(~as_bool, -torch.inf)
    for mask in (as_bool, as_float):
        torch.testing.assert_close(attend_per_head(query, keys, values, lengths, mask, 0.3), causal)
    torch.testing.assert_close(ragged.attend_varlen(fake_kernel, query, keys, values, lengths, 0.3), causal)


def test_the_kernel_is_for_half_precision_on_cuda_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    for version in (None, 2, 4):
        fake = ModuleType("flash_attn")
        if version == 2:  # 4 has only flash_attn.cute
            fake.flash_attn_varlen_func = fake_kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", fake if version else None)
        ragged._flash_attn.cache_clear()
        assert ragged.varlen_kernel(on_cuda, None) is (fake_kernel if version == 2 else None)
        assert ragged.varlen_kernel(on_cuda, torch.ones(1)) is None
        assert ragged.varlen_kernel(SimpleNamespace(is_cuda=True, dtype=torch.float32), None) is None
        assert ragged.varlen_kernel(torch.ones(1, dtype=torch.bfloat16), None) is None
    ragged._flash_attn.cache_clear()


def test_rows_and_later_tokens_can_be_taken_away() -> None:
    ids, mask, lookahead = batch_of((40, 29, 33))
    view = attention_view(model_of("llama"))
    more = torch.randint(0, 128, (3, 4), generator=torch.Generator().manual_seed(2))
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    expected = decode(view, prefill(view, ids, mask, lookahead, ADAPTIVE)[0], whole, whole_mask, [1] * 5)
    rows = torch.tensor([2, 0])
    for change in ("select", "reorder", "repeat"):
        cache, _ = prefill(view, ids, mask, lookahead, ADAPTIVE)
        decode(view, cache, whole[:, :42], whole_mask[:, :42], [1, 2])
        cache.crop(-1)
        taken = rows
        if change == "select":
            cache.batch_select_indices(rows)
        elif change == "reorder":
            cache.reorder_cache(rows)
        else:
            cache.batch_repeat_interleave(2)
            taken = torch.arange(3).repeat_interleave(2)
        found = decode(view, cache, whole[taken], whole_mask[taken], [1, 1, 1])
        torch.testing.assert_close(found, expected[taken, 2:], rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="only the 5 tokens after the prompt"):
            cache.crop(-6)
        with pytest.raises(NotImplementedError, match="prefill a new one"):
            cache.reset()
