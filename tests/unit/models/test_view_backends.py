"""Views with the kernel of the user's model: the same scores, pairs and answers as with SDPA, padding and windows too.

FlashAttention's kernels are stood in for by loops, see tests/helpers/flash_kernels.py; flex_attention is unfused.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import masking_utils
from transformers.integrations import flex_attention as flex_utils

from draftapprox_integrations import SpecPCConfig
from draftapprox_integrations.models import backends
from draftapprox_integrations.models.attention import IMPLEMENTATION, attention_view
from draftapprox_integrations.models.backends import backend_of, causal_pattern
from draftapprox_integrations.speckv.prefill import prefill
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.helpers.flash_kernels import installed
from tests.unit.models.test_attention import family
from tests.unit.models.test_backends import CONFIGS, generated, rows_of
from tests.unit.speckv.test_prefill import batch_of, model_of

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
KERNELS = ["flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A kernel's name, and the list of its calls."""
    if request.param != "flex_attention":
        monkeypatch.setattr(backends, "_flash_takes", lambda *_: True)  # the stand-ins take float32 on a CPU
        with installed(monkeypatch, int(request.param[-1])) as found:
            yield request.param, found.calls
        return
    calls: list[str] = []
    mask, unfused = masking_utils.create_block_mask, flex_utils.flex_attention  # type: ignore[attr-defined]

    def attend(*args: Any, **options: Any) -> Any:
        calls.append("flex")
        return unfused(*args, **options)

    uncompiled = {"_compile": False}
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *args, **kw: mask(*args, **(kw | uncompiled)))
    monkeypatch.setattr(flex_utils.WrappedFlexAttention, "__call__", lambda self: attend)
    yield request.param, calls
    backends._causal_block_mask.cache_clear()


def with_kernel(model: Any, name: str) -> Any:
    model.config._attn_implementation = name
    return model


# Each kernel and each method meets both models and both lengths.
@pytest.mark.parametrize(
    ("kernel", "name", "method", "lengths"),
    [
        (kernel, ["llama", "gemma3_text"][(i + j) % 2], method, [(80,), (80, 61, 9)][(i // 2 + j // 2) % 2])
        for i, kernel in enumerate(KERNELS)
        for j, method in enumerate(["speckv", "adaptive", "specpc", "cascade, original"])
    ],
    indirect=["kernel"],
)
def test_answers_are_those_of_sdpa(kernel: Any, name: str, method: str, lengths: Any) -> None:
    implementation, calls = kernel
    rows = rows_of(lengths)[2]
    expected = generated(model_of(name), family("qwen3", "sdpa"), method, rows)
    assert not calls
    target, draft = model_of(name, implementation), with_kernel(family("qwen3", "sdpa"), implementation)
    found = generated(target, draft, method, rows)
    assert calls
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert target.config._attn_implementation == draft.config._attn_implementation == implementation


@pytest.mark.parametrize("lengths", [(40,), (40, 29, 12)], ids=["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3"])
def test_every_layer_of_the_prefill_calls_the_kernel(kernel: Any, name: str, lengths: Any) -> None:
    implementation, calls = kernel
    batch = batch_of(lengths)
    _, expected = prefill(attention_view(model_of(name)), *batch, CONFIGS["speckv"])
    view = attention_view(model_of(name, implementation))
    assert view.config._attn_implementation == IMPLEMENTATION
    _, found = prefill(view, *batch, CONFIGS["speckv"])
    assert len(calls) == 3  # the last layer's attention is not computed
    for layer, scores in expected.scores.items():
        torch.testing.assert_close(found.scores[layer], scores, rtol=1e-4, atol=2e-5)
        assert torch.equal(found.kept[layer], expected.kept[layer])


@pytest.mark.parametrize(
    ("kernel", "name", "chunk"),
    [
        (kernel, ["llama", "mistral", "gemma3_text"][(i + j) % 3], chunk)  # each two of them meet
        for i, kernel in enumerate(KERNELS)
        for j, chunk in enumerate([None, 1, 7, 49])
    ],
    indirect=["kernel"],
)
def test_scores_with_chunks_padding_and_drafted_tokens(kernel: Any, name: str, chunk: Any) -> None:
    implementation, calls = kernel
    ids = torch.randint(0, 128, (2, 50), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    config = SpecPCConfig(prefill_chunk_size=chunk, lookahead_tokens=4)
    expected = read_importance(attention_view(family(name, "sdpa")), ids, mask, 11, config)
    found = read_importance(attention_view(with_kernel(family(name, "sdpa"), implementation)), ids, mask, 11, config)
    assert calls
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=2e-5)
    assert [row.tolist() for row in found.lookahead_ids] == [row.tolist() for row in expected.lookahead_ids]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    ended=st.integers(0, 2),
    queries=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 10)),
    flips=st.integers(0, 1),
    data=st.data(),
)
def test_a_mask_is_translated_exactly_or_not_at_all(
    lengths: list[int], ended: int, queries: int, window: int | None, flips: int, data: st.DataObject
) -> None:
    keys = max(lengths)
    queries = min(queries, keys)
    own, columns = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    real = (columns >= keys - torch.tensor(lengths)[:, None]) & (columns < keys - ended)
    mask = ((columns <= own) & (columns > own - (window or keys)))[None] & real[:, None]
    mask = mask[:, None].clone()
    if flips:
        row = data.draw(st.integers(0, len(lengths) - 1))
        mask[row, 0, data.draw(st.integers(0, queries - 1)), data.draw(st.integers(0, keys - 1))] ^= True
    pattern = causal_pattern(mask, queries, keys, window)
    assert causal_pattern(mask, queries, keys, window) is pattern
    if pattern is None:
        assert flips
        return
    again = (columns <= own) & (columns > own - (pattern.window or keys))
    again = again[None].expand(len(lengths), -1, -1)
    if pattern.padding is not None:
        again = again & pattern.padding[:, None]
    assert torch.equal(again[:, None], mask)


def test_masks_that_no_kernel_takes() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    assert causal_pattern(causal, 6, 6, None) is not None
    assert causal_pattern(None, 6, 6, None) is not None
    assert causal_pattern(None, 1, 6, None) is not None
    assert causal_pattern(None, 3, 6, None) is None  # SDPA aligns this to the upper left
    assert causal_pattern(causal.float(), 6, 6, None) is None
    assert causal_pattern(causal, 6, 5, None) is None
    gap = causal & (torch.arange(6) != 3)
    assert causal_pattern(gap, 6, 6, None) is None
    two_chunks = causal.clone()
    two_chunks[..., 3:, :3] = False
    assert causal_pattern(two_chunks, 6, 6, 3) is None


def test_what_flash_attention_takes() -> None:
    def takes(
        version: int, size: int, dtype: Any = torch.bfloat16, cuda: bool = True, value: int | None = None
    ) -> bool:
        query = SimpleNamespace(shape=(1, 2, 3, size), dtype=dtype, is_cuda=cuda)
        return backends._flash_takes(
            f"flash_attention_{version}", query, SimpleNamespace(shape=(1, 2, 3, value or size))
        )

    assert all(takes(version, size) for version in (2, 3, 4) for size in (64, 80, 96, 128, 256))
    assert takes(2, 192)
    assert not takes(4, 192)  # on Blackwell only with the values of DeepSeek's size
    assert not any(takes(version, 128, torch.float32) for version in (2, 3, 4))
    assert not takes(2, 128, cuda=False)
    assert not takes(2, 100)
    assert not takes(2, 512)
    assert not takes(2, 192, value=128)


def test_names_of_kernels() -> None:
    for name in [*KERNELS, "kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3@v1"]:
        assert backend_of(name) is not None
    others: list[str | None] = [None, "sdpa", "eager", "kernels-community/metal-flash-sdpa", IMPLEMENTATION]
    assert all(backend_of(name) is None for name in others)
