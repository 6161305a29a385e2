"""Sparse prefill against the definition, written as masks and loops over dense attention."""

import threading
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface

from draftapprox_integrations import SpecKV, SpecKVConfig, load_model
from draftapprox_integrations.kernels import vertical_slash as kernel
from draftapprox_integrations.kernels.vertical_slash import vertical_slash
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.prefill import prefill
from draftapprox_integrations.speckv.sparse_prefill import SparseAttention, select_columns
from tests.conftest import tiny_llama
from tests.unit.speckv.test_prefill import always_a_mask, batch_of, model_of, positions

DENSE = SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3)


def sparse_of(window: Any, size: Any) -> Any:
    return replace(DENSE, prefill="sparse", prefill_window_size=window, prefill_vertical_size=size)


SPARSE = sparse_of(7, 9)


def visible(tokens: Any, columns: Any, window: Any) -> Any:
    """bool [kv_heads, tokens, tokens]: what the docs say, one query and key at a time."""
    allowed = torch.zeros(len(columns), tokens, tokens, dtype=torch.bool)
    for head, own in enumerate(columns.tolist()):
        for i in range(tokens):
            for j in range(i + 1):
                allowed[head, i, j] = j > i - window or j in own
    return allowed


def attend(query: Any, key: Any, value: Any, allowed: Any, scaling: Any) -> Any:
    """Dense attention in float32 under a mask per query head."""
    group = query.shape[-3] // key.shape[-3]
    key, value = key.float().repeat_interleave(group, -3), value.float().repeat_interleave(group, -3)
    logits = (query.float() @ key.transpose(-1, -2) * scaling).masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0) @ value


def random_qkv(heads: Any, kv_heads: Any, tokens: Any, dtype: Any = torch.float32, batch: Any = ()) -> Any:
    generator = torch.Generator().manual_seed(tokens + heads)
    shapes = ((heads, tokens, 16), (kv_heads, tokens, 16), (kv_heads, tokens, 12))
    return [torch.randn(*batch, *shape, generator=generator).to(dtype) for shape in shapes]


def random_columns(heads: Any, tokens: Any, size: Any) -> Any:
    return torch.stack([torch.randperm(tokens)[:size].sort().values for _ in range(heads)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize(
    ("tokens", "window", "size", "block"),
    [(60, 9, 11, 7), (61, 1, 5, 16), (50, 13, 50, 8), (33, 40, 6, 8), (40, 40, 3, 8), (41, 40, 3, 8), (70, 3, 1, 1)],
)
def test_equals_the_masked_dense_attention(
    monkeypatch: pytest.MonkeyPatch, tokens: int, window: int, size: int, block: int, heads: tuple[int, int], dtype: Any
) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    query, key, value = random_qkv(*heads, tokens, dtype)
    torch.manual_seed(size)
    columns = random_columns(heads[1], tokens, size)
    found = vertical_slash(query, key, value, columns, window, 0.3)
    allowed = visible(tokens, columns, window).repeat_interleave(heads[0] // heads[1], 0)
    atol = 1e-4 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), attend(query, key, value, allowed, 0.3), rtol=0, atol=atol)


def test_blocks_as_they_are_in_use() -> None:
    tokens, window = 2 * kernel.BLOCK + 101, 90
    query, key, value = random_qkv(4, 2, tokens)
    torch.manual_seed(0)
    columns = random_columns(2, tokens, 64)
    at = torch.arange(tokens)
    allowed = (at > at[:, None] - window).expand(2, -1, -1).clone()
    for head in range(2):
        allowed[head, :, columns[head]] = True
    allowed = allowed.tril().repeat_interleave(2, 0)
    found = vertical_slash(query, key, value, columns, window, 0.25)
    torch.testing.assert_close(found, attend(query, key, value, allowed, 0.25), rtol=0, atol=1e-4)


def test_best_columns_in_order_and_padding_last() -> None:
    pooled = torch.tensor([[[-torch.inf, 0.1, 0.5, 0.5, 0.4]]])
    assert select_columns(pooled, 2).tolist() == [[[2, 3]]]
    assert select_columns(pooled, 3).tolist() == [[[2, 3, 4]]]
    assert select_columns(pooled, 9).tolist() == [[[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("padded", [False, True])
def test_a_layers_attention_with_padding_and_tail(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 8)
    prompt, total, body, window, size = 50, 55, 45, 7, 20
    lengths = [50, 41, 26, 3] if padded else [50, 50]  # 26 is short; 3 has padding even in the tail
    query, key, value = random_qkv(6, 2, total, batch=(len(lengths),))
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    pooled = torch.rand(len(lengths), 2, body)
    allowed = torch.zeros(len(lengths), 6, total, total, dtype=torch.bool)
    for row, length in enumerate(lengths):
        real[row, prompt - length :] = True
        if padded:
            real[row, total - row :] = False  # lookaheads that ended early
        pooled[row, :, : prompt - length] = -torch.inf
        columns = pooled[row].argsort(descending=True)[:, :size]
        wide = length if length < window + size else window
        allowed[row] = visible(total, columns, wide).repeat_interleave(3, 0)
        allowed[row, :, body:] = torch.ones(total, total, dtype=torch.bool).tril()[body:]
    allowed &= real[:, None, None]
    mask = (real[:, None, None] & torch.ones(total, total, dtype=torch.bool).tril()) if padded else None
    starts = [prompt - length for length in lengths]
    sparse = SparseAttention(select_columns(pooled, size), starts, lengths, body, window, size, mask, 0.3)
    found = sparse(query, key, value)
    assert found.isfinite().all()
    expected = attend(query, key, value, allowed, 0.3).transpose(1, 2)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- the prefill of a model

# For the oracle.
ALLOWED: dict[int, Any] = {}  # layer -> columns and body
SEEN: dict[int, Any] = {}  # layer -> what it was given


def oracle_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Any = None,
    **_: Any,
) -> Any:
    layer = module.layer_idx
    allowed = attention_mask.expand(-1, query.shape[1], -1, -1).clone()
    SEEN[layer] = query, key, allowed.clone(), scaling
    if layer in ALLOWED:
        columns, body, window = ALLOWED[layer]
        for row in range(query.shape[0]):
            narrow = visible(query.shape[2], columns[row], window)[:, :body].repeat_interleave(2, 0)
            allowed[row, :, :body] &= narrow
    return attend(query, key, value, allowed, scaling).transpose(1, 2), None


AttentionInterface.register("test_sdpa_sparse", oracle_attention)
AttentionMaskInterface.register("test_sdpa_sparse", always_a_mask)


@pytest.mark.parametrize("lengths", [(60,), (60, 41, 52)], ids=["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_scores_equal_a_model_whose_attention_is_masked(
    monkeypatch: pytest.MonkeyPatch, name: str, lengths: Any
) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 16)
    ids, mask, lookahead = batch_of(lengths)
    _, evictor = prefill(attention_view(model_of(name)), ids, mask, lookahead, SPARSE)
    assert sorted(evictor.scores) == ([1, 3] if name == "gemma3_text" else [0, 1, 2, 3])
    body = 60 - 5
    longest = max(len(tokens) for tokens in lookahead)
    more = torch.zeros(len(lengths), longest, dtype=torch.long)
    more_mask = torch.zeros_like(more)
    for row, tokens in enumerate(lookahead):
        more[row, : len(tokens)], more_mask[row, : len(tokens)] = tokens, 1
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, more_mask], 1)
    for layer, (_, pooled) in evictor.scores.items():
        ALLOWED[layer] = pooled.argsort(dim=-1, descending=True, stable=True)[..., :9], body, 7
    try:
        with torch.no_grad():
            model_of(name, "test_sdpa_sparse")(whole, attention_mask=whole_mask, position_ids=positions(whole_mask))
        seen = dict(SEEN)
    finally:
        ALLOWED.clear()
        SEEN.clear()
    for layer, (raw, _) in evictor.scores.items():
        query, key, allowed, scaling = seen[layer]
        logits = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * scaling
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)[:, :, body:, :body]
        weights = weights * whole_mask[:, None, body:, None]
        expected = weights.unflatten(1, (2, 2)).amax(dim=(2, 3))
        torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [(60,), (60, 41, 52)], ids=["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_all_columns_keep_what_the_dense_prefill_keeps(name: str, lengths: Any) -> None:
    ids, mask, lookahead = batch_of(lengths)
    view = attention_view(model_of(name))
    cache, found = prefill(view, ids, mask, lookahead, sparse_of(2, 57))
    dense, expected = prefill(view, ids, mask, lookahead, DENSE)
    for layer, kept in expected.kept.items():
        assert torch.equal(found.kept[layer], kept)
    for ours, theirs in zip(cache.layers, dense.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budgets", ["uniform", "adaptive"])
def test_all_columns_write_what_the_dense_prefill_writes(budgets: str) -> None:
    model = load_model(tiny_llama())
    prompt = torch.randint(2, 512, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    settings: dict[str, Any] = {"max_capacity_prompt": 40, "window_size": 8, "head_budgets": budgets}
    configs = [
        SpecKVConfig(**settings),
        SpecKVConfig(**settings, prefill="sparse", prefill_window_size=5, prefill_vertical_size=295),
        SpecKVConfig(**settings, prefill="sparse", prefill_window_size=5, prefill_vertical_size=3),
    ]
    dense, everything, few = (
        SpecKV(model, model, config).generate(prompt, max_new_tokens=12)[0].token_ids for config in configs
    )
    assert everything == dense
    assert few != dense  # or the test above would prove nothing


def scores_of(view: Any, lengths: Any, config: Any) -> Any:
    ids, mask, lookahead = batch_of(lengths)
    _, evictor = prefill(view, ids, mask, lookahead, config)
    return [pooled for _, pooled in evictor.scores.values()]


def test_short_prompts_stay_dense() -> None:
    view = attention_view(model_of("llama"))
    for length in (29, 30):
        found, expected = scores_of(view, (length,), sparse_of(15, 15)), scores_of(view, (length,), DENSE)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) == (length < 30)


def test_a_row_of_a_padded_batch_gives_what_it_gives_alone() -> None:
    view = attention_view(model_of("llama"))
    lengths = (60, 15, 33, 16)
    ids, mask, lookahead = batch_of(lengths)
    _, together = prefill(view, ids, mask, lookahead, SPARSE)
    for row, length in enumerate(lengths):
        if length - 1 <= SPARSE.max_capacity_prompt:
            continue
        alone_ids = ids[row : row + 1, 60 - length :]
        _, alone = prefill(view, alone_ids, torch.ones_like(alone_ids), [lookahead[row]], SPARSE)
        for layer, (raw, _) in alone.scores.items():
            torch.testing.assert_close(together.scores[layer][0][row, :, 60 - length :], raw[0], rtol=1e-4, atol=1e-5)
            assert torch.equal(together.kept[layer][row] - (60 - length), alone.kept[layer][0])


def test_threads_with_other_settings_do_not_meet() -> None:
    view = attention_view(model_of("llama"))
    configs = [DENSE, SPARSE, sparse_of(20, 2)]
    expected = [scores_of(view, (60, 41), config) for config in configs]
    assert not torch.equal(expected[0][-1], expected[1][-1])
    assert not torch.equal(expected[1][-1], expected[2][-1])
    found = {}

    def run(i: Any) -> None:
        found[i] = [scores_of(view, (60, 41), configs[i]) for _ in range(4)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        for again in found[i]:
            assert all(torch.equal(a, b) for a, b in zip(again, expected[i], strict=True))


def test_a_cancelled_prefill_ends_at_its_next_layer() -> None:
    ids, mask, lookahead = batch_of((60,))
    asked = count()
    _, evictor = prefill(attention_view(model_of("llama")), ids, mask, lookahead, SPARSE, lambda: next(asked) >= 2)
    assert sorted(evictor.kept) == [0, 1]


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives out."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.bytes = max(self.bytes, part.untyped_storage().nbytes())
        return out


def test_no_tensor_grows_with_the_square_of_the_prompt() -> None:
    view = attention_view(tiny_llama(max_position_embeddings=8192))
    config = SpecKVConfig(
        max_capacity_prompt=32, window_size=8, prefill="sparse", prefill_window_size=64, prefill_vertical_size=64
    )
    sizes = []
    for tokens in (1500, 3000, 6000):
        ids = torch.randint(0, 512, (1, tokens), generator=torch.Generator().manual_seed(0))
        with Largest() as largest:
            prefill(view, ids, torch.ones_like(ids), [ids[0, :8]], config)
        sizes.append(largest.bytes)
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[2] <= 2.1 * sizes[1]


def test_another_kind_of_prefill_is_refused() -> None:
    with pytest.raises(ValueError, match="prefill must be one of 'dense', 'sparse'; got 'half'"):
        SpecKVConfig(prefill="half")
