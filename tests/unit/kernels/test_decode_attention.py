"""Decode attention: the kernel against its PyTorch form, and that against softmax row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from draftapprox_integrations.config import KVQuantization
from draftapprox_integrations.kernels.decode_attention import decode_attention, torch_form
from draftapprox_integrations.kernels.pairs import PackedPairs, Pairs, pairs_of
from draftapprox_integrations.speckv.cache.codec import TorchCodec
from tests.unit.kernels.conftest import DEVICE

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HOSTILE = float("nan")  # what unused slots hold


def random(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def ragged(lengths: Any, head_dim: Any, value_dim: Any, dtype: Any) -> Pairs:
    """Pairs of all heads one after the other, as `RaggedLayer` keeps them; unused entries around them."""
    lengths = torch.tensor(lengths, device=DEVICE)
    starts = 3 + lengths.flatten().cumsum(0).view_as(lengths) - lengths
    count = int(lengths.sum()) + 6
    keys, values = random(count, head_dim, dtype=dtype), random(count, value_dim, dtype=dtype)
    for part in (keys, values):
        part[:3] = part[-3:] = HOSTILE
    return Pairs(keys, values, starts, lengths, int(lengths.max()) + 2)


def dense(lengths: Any, slots: Any, head_dim: Any, value_dim: Any, dtype: Any, kv_heads: Any) -> Pairs:
    """A slice of a larger buffer, as the engine hands it out."""
    keys, values = (random(len(lengths) + 2, kv_heads, slots + 5, d, dtype=dtype) for d in (head_dim, value_dim))
    for row, length in enumerate(lengths):
        keys[row, :, length:] = values[row, :, length:] = HOSTILE
    inside = slice(0, len(lengths)), slice(None), slice(0, slots)
    return pairs_of(keys[inside], values[inside], torch.tensor(lengths, device=DEVICE))


def packed(
    lengths: Any, slots: Any, head_dim: Any, value_dim: Any, dtype: Any, kv_heads: Any, bits: Any
) -> PackedPairs:
    codec = TorchCodec(KVQuantization(bits=bits, group_size=32))
    keys, values = (random(len(lengths), kv_heads, slots, d, dtype=dtype) for d in (head_dim, value_dim))
    numbers = torch.tensor(lengths, device=DEVICE)[:, None].expand(-1, kv_heads)
    return PackedPairs(*codec.pack(keys, values), numbers)


def row_by_row(query: Any, parts: Any, scaling: Any) -> Any:
    """The definition: softmax over a head's pairs, in float32."""
    batch, heads, _ = query.shape
    kv_heads = parts[0].lengths.shape[1]
    out = torch.zeros(batch, heads, parts[0].value_dim, device=query.device)
    for row in range(batch):
        for head in range(heads):
            kv = head // (heads // kv_heads)
            pieces = [slots(part, row, kv) for part in parts]
            keys, values = (torch.cat([piece[i] for piece in pieces]).float() for i in (0, 1))
            if len(keys):
                out[row, head] = (keys @ query[row, head].float() * scaling).softmax(0) @ values
    return out.to(query.dtype)


def slots(part: Any, row: Any, kv: Any) -> Any:
    length = int(part.lengths[row, kv])
    if isinstance(part, PackedPairs):
        codec = TorchCodec(KVQuantization())
        return [codec.unpack(packed)[row, kv, :length] for packed in (part.keys, part.values)]
    start = int(part.starts[row, kv])
    return part.keys[start : start + length], part.values[start : start + length]


def check(query: Any, parts: Any, scaling: Any = 0.3) -> None:
    expected = row_by_row(query, parts, scaling)
    for form in (torch_form, decode_attention):
        found = form(query, parts, scaling)
        assert found.dtype == query.dtype
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[query.dtype], atol=TOLERANCE[query.dtype])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "value_dim", "dtype"),
    [
        (2, 2, 16, 16, torch.bfloat16),
        (6, 2, 80, 96, torch.float32),
        (16, 1, 24, 40, torch.bfloat16),
        (4, 1, 256, 128, torch.float32),
        (20, 1, 32, 32, torch.float16),
    ],
    ids=str,
)
def test_kernel_equals_the_definition(heads: Any, kv_heads: Any, head_dim: Any, value_dim: Any, dtype: Any) -> None:
    torch.manual_seed(0)
    sizes = head_dim, value_dim, dtype
    kept = [[0] * kv_heads, [1 + 2 * head for head in range(kv_heads)], [140] * kv_heads]
    parts = [
        ragged(kept, *sizes),
        packed([0, 35, 66], 70, *sizes, kv_heads, 8),
        packed([0, 1, 33], 33, *sizes, kv_heads, 4),
        dense([0, 3, 130], 133, *sizes, kv_heads),
    ]
    check(random(3, heads, head_dim, dtype=dtype), parts)


@pytest.mark.usefixtures("kernels")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kernel_equals_the_definition_for_any_lengths(data: st.DataObject) -> None:
    batch, kv_heads, group = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    parts: list[Any] = []
    for kind in data.draw(st.lists(st.sampled_from(["ragged", "dense", 8, 4]), min_size=1, max_size=3)):
        lengths = data.draw(st.lists(st.integers(0, 150), min_size=batch, max_size=batch))
        slots = max(1, max(lengths) + data.draw(st.integers(0, 9)))
        if kind == "ragged":
            parts.append(ragged([[max(0, n - 7 * h) for h in range(kv_heads)] for n in lengths], 20, 18, torch.float32))
        elif kind == "dense":
            parts.append(dense(lengths, slots, 20, 18, torch.float32, kv_heads))
        else:
            parts.append(packed(lengths, slots, 20, 18, torch.float32, kv_heads, kind))
    check(random(batch, kv_heads * group, 20), parts)


@pytest.mark.usefixtures("kernels")
def test_without_any_entry() -> None:
    lengths = torch.zeros(2, 1, dtype=torch.long, device=DEVICE)
    for capacity in (0, 4):
        nothing = Pairs(random(0, 16), random(0, 16), lengths, lengths, capacity)
        assert not decode_attention(random(2, 1, 16), [nothing], 1.0).any()
        assert not torch_form(random(2, 1, 16), [nothing], 1.0).any()


@pytest.mark.usefixtures("kernels")
def test_many_splits() -> None:
    torch.manual_seed(0)
    check(random(1, 2, 16), [dense([2900], 3000, 16, 16, torch.float32, 1), ragged([[500]], 16, 16, torch.float32)])


@pytest.mark.usefixtures("kernels")
def test_dequantization_rounds_as_the_codec() -> None:
    """One pair: its attention is its value."""
    torch.manual_seed(0)
    for bits in (8, 4):
        part = packed([1, 1], 1, 16, 48, torch.float32, 1, bits)
        exact = TorchCodec(KVQuantization()).unpack(part.values)[:, :, 0]
        found = decode_attention(random(2, 1, 16), [part], 1.0)
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)  # the weight is 2 ** log2(1)


@pytest.mark.parametrize("layout", ["contiguous", "slots cut", "rows cut", "tokens first"])
def test_pairs_of_a_buffer(layout: str) -> None:
    buffer = random(4, 3, 10, 16)
    if layout == "slots cut":
        buffer = buffer[:, :, 2:7]
    elif layout == "rows cut":
        buffer = buffer[1:3, :2]
    elif layout == "tokens first":
        buffer = buffer.transpose(1, 2).contiguous().transpose(1, 2)
    batch = len(buffer)
    lengths, starts = torch.arange(batch, device=DEVICE), torch.full((batch, buffer.shape[1]), 1, device=DEVICE)
    pairs = pairs_of(buffer, buffer + 1, lengths, starts)
    if layout == "tokens first":
        assert pairs.keys.data_ptr() != buffer.data_ptr()
    for row in range(batch):
        for head in range(buffer.shape[1]):
            keys, values = slots(pairs, row, head)
            assert keys.equal(buffer[row, head, 1 : 1 + row])
            assert values.equal(buffer[row, head, 1 : 1 + row] + 1)


def test_a_slice_of_a_buffer_is_not_copied() -> None:
    buffer = random(4, 3, 10, 16)
    pairs = pairs_of(buffer[1:3, :, 2:7], buffer[1:3, :, 2:7], torch.tensor([1, 5], device=DEVICE))
    assert pairs.keys.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def flat(query: Any, tensors: Any) -> Any:
    """`torch_form` as a function of tensors: a dense part, a ragged one and a quantized one."""
    keys, values, lengths, kept, kept_values, starts, counts, codes = tensors
    parts = [pairs_of(keys, values, lengths), Pairs(kept, kept_values, starts, counts, 40)]
    quantized = PackedPairs(*TorchCodec(KVQuantization(bits=4)).pack(codes, codes), counts)
    return torch_form(query, [*parts, quantized], 0.3)


def inputs(seed: int) -> Any:
    torch.manual_seed(seed)
    counts = torch.randint(0, 30, (2, 2), device=DEVICE)
    starts = torch.randint(0, 50, (2, 2), device=DEVICE)
    lengths = torch.randint(0, 9, (2,), device=DEVICE)
    dense = random(2, 2, 9, 16), random(2, 2, 9, 16)
    return random(2, 4, 16), (*dense, lengths, random(90, 16), random(90, 16), starts, counts, random(2, 2, 30, 16))


def test_the_pytorch_form_reads_no_number_on_the_host() -> None:
    with FakeTensorMode() as fake:
        query, tensors = inputs(0)
        assert query.fake_mode is fake
        assert flat(query, tensors).shape == (2, 4, 16)


def test_a_recorded_graph_of_the_pytorch_form_holds_for_other_lengths() -> None:
    recorded = make_fx(flat)(*inputs(0))
    for seed in range(1, 6):
        query, tensors = inputs(seed)
        torch.testing.assert_close(recorded(query, tensors), flat(query, tensors), rtol=0, atol=0)
