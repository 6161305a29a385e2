"""Kept pairs in few bits: within the format's bound, really smaller, at their true positions; and what is refused."""

import copy
import importlib.util
from dataclasses import asdict
from typing import Any

import pytest
import torch

from draftapprox_integrations import KVQuantization, LoadedModel, SpecKV, SpecKVConfig
from draftapprox_integrations.engine.registry import as_method
from draftapprox_integrations.errors import MissingDependencyError
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache import codec
from draftapprox_integrations.speckv.cache.codec import make_codec
from draftapprox_integrations.speckv.cache.evicted import EvictedLayer
from draftapprox_integrations.speckv.cache.quantized import QuantizedLayer, cache_bytes
from draftapprox_integrations.speckv.prefill import prefill
from tests.unit.speckv.test_prefill import batch_of, decode, model_of

PLAIN: dict[str, Any] = {"max_capacity_prompt": 14, "window_size": 4, "kernel_size": 3}
LIBRARIES = {"hqq": "hqq", "quanto": "optimum"}
BACKENDS = [("torch", 8), ("torch", 4), ("hqq", 8), ("hqq", 4), ("quanto", 4)]


def settings_of(backend: Any, bits: Any, **changes: Any) -> Any:
    if backend in LIBRARIES and importlib.util.find_spec(LIBRARIES[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    return KVQuantization(backend=backend, bits=bits, **changes)


def pairs(shape: Any, dtype: Any, seed: int = 0) -> Any:
    """Keys with channels of very different size, as real ones have; values without."""
    torch.manual_seed(seed)
    scale = 10 ** torch.linspace(-2, 2, shape[-1])
    return (torch.randn(shape) * scale + scale).to(dtype), torch.randn(shape).to(dtype)


def half_steps(numbers: Any, group: Any, bits: Any) -> Any:
    """Per number of a sequence half the step of its group, by a loop; `group` as it is after evening out."""
    found = []
    for start in range(0, len(numbers), group):
        piece = numbers[start : start + group]
        found += [(max(piece) - min(piece)) / (2**bits - 1) / 2] * len(piece)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 64, 64, 16), (4, 64, 14, 7), (8, 8, 21, 5), (4, 6, 13, 16)], ids=str)
def test_every_number_is_within_half_a_step_of_its_group(shape: Any, dtype: Any) -> None:
    bits, group, kept, dim = shape
    keys, values = pairs((2, 3, kept, dim), dtype)
    codec = make_codec(KVQuantization(bits=bits, group_size=group))
    packed = codec.pack(keys, values)
    for numbers, along, found in [(keys, 2, codec.unpack(packed[0])), (values, 3, codec.unpack(packed[1]))]:
        assert (found.shape, found.dtype) == (numbers.shape, dtype)
        count = numbers.shape[along]
        groups = -(-count // group)
        size = -(-count // groups)
        size += size % 2 if bits == 4 else 0
        lines = numbers.double().movedim(along, -1).flatten(0, -2)
        errors = (found.double() - numbers.double()).abs().movedim(along, -1).flatten(0, -2)
        rounding = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
        for line, error in zip(lines.tolist(), errors.tolist(), strict=True):
            for number, off, half in zip(line, error, half_steps(line, size, bits), strict=True):
                assert off <= half * 1.001 + abs(number) * rounding + half * rounding + 1e-6
    alone = codec.unpack(codec.pack(keys[1:], values[1:])[0])
    assert torch.equal(codec.unpack(packed[0])[1:], alone)  # no group reaches into another row


def test_four_and_eight_bits_give_as_many_levels() -> None:
    numbers = torch.linspace(-1, 1, 1000).reshape(1, 1, 1, 1000)
    for bits in (4, 8):
        codec = make_codec(KVQuantization(bits=bits, group_size=1000))
        found = codec.unpack(codec.pack(numbers, numbers)[1])
        assert len(found.unique()) == 2**bits
        assert (found[..., 0], found[..., -1]) == (-1, 1)
    same = torch.full((1, 1, 4, 6), 3.25)
    assert torch.equal(make_codec(KVQuantization()).unpack(make_codec(KVQuantization()).pack(same, same)[0]), same)


@pytest.mark.parametrize(("backend", "bits"), BACKENDS)
def test_the_bytes_are_really_fewer(backend: str, bits: int) -> None:
    settings, (keys, values) = settings_of(backend, bits), pairs((2, 3, 256, 64), torch.bfloat16)
    layer, indices = QuantizedLayer(settings), torch.arange(256).expand(2, 3, 256)
    layer.update(keys, values)
    layer.keep(indices, 300)
    full = 2 * keys.nbytes
    share = cache_bytes(type("Cache", (), {"layers": [layer]})) / full
    assert share <= (bits + 2) / 16  # of 16 bits; a scale and a zero of a group of 64 are worth 2 bits at most
    assert share >= bits / 16
    found = layer.unpacked()
    assert (found[0].dtype, found[0].shape) == (torch.bfloat16, keys.shape)
    for numbers, back, axis in [(keys, found[0], 2), (values, found[1], 3)]:
        along = axis if backend == "torch" else 3
        spread = (numbers.amax(along) - numbers.amin(along)).float().mean()
        assert (back - numbers).abs().float().mean() < spread / 2**bits * 2


@pytest.mark.parametrize(("backend", "bits"), BACKENDS)
@pytest.mark.parametrize("lengths", [(40,), (40, 29, 9)], ids=["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_decoding_is_exact_on_what_was_unpacked(name: str, lengths: Any, backend: str, bits: int) -> None:
    """The same pairs in an EvictedLayer, whose positions and masks other tests hold against a full cache."""
    settings = settings_of(backend, bits)
    ids, mask, lookahead = batch_of(lengths)
    model = model_of(name)
    view = attention_view(model)
    reference, evictor = prefill(view, ids, mask, lookahead, SpecKVConfig(**PLAIN))
    full = copy.deepcopy(reference)
    cache, quantized = prefill(view, ids, mask, lookahead, SpecKVConfig(**PLAIN, kv_quantization=settings))
    assert all(torch.equal(evictor.kept[layer], quantized.kept[layer]) for layer in evictor.kept)
    assert cache.get_seq_length() == reference.get_seq_length() == 39
    layers = [layer for layer in cache.layers if isinstance(layer, QuantizedLayer)]
    assert len(layers) == (2 if name == "gemma3_text" else 4)
    for layer, other in zip(cache.layers, reference.layers, strict=True):
        if isinstance(layer, QuantizedLayer):
            other.keys, other.values = layer.unpacked()
            assert layer.get_mask_sizes(3) == other.get_mask_sizes(3)
    more = torch.randint(0, 128, (len(lengths), 9), generator=torch.Generator().manual_seed(2))
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    steps = [1, 1, 1, 4, 1, 2]
    found = decode(model, cache, whole, whole_mask, steps)
    torch.testing.assert_close(found, decode(model, reference, whole, whole_mask, steps), rtol=1e-5, atol=1e-5)
    assert all(layer.keys.shape[2] == 10 for layer in layers)  # later tokens, as they came
    # and near to what the pairs themselves give
    p = decode(model, full, whole, whole_mask, steps).log_softmax(-1)
    divergence = (p.exp() * (p - found.log_softmax(-1))).sum(-1).mean()
    assert divergence < (0.01 if bits == 8 else 0.5)


def rows_of(lengths: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 512, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_engine_says_how_small_it_is_and_serves_as_ever(pair: tuple[LoadedModel, LoadedModel], kind: str) -> None:
    config = SpecKVConfig(max_capacity_prompt=64, lookahead_tokens=4, kv_quantization=kind)
    engine, rows = SpecKV(*pair, config), rows_of((200, 150, 90))
    found = engine.generate(rows, max_new_tokens=10)
    full = SpecKV(*pair, SpecKVConfig(max_capacity_prompt=64, lookahead_tokens=4)).generate(rows, max_new_tokens=10)
    assert full[0].usage.kept_kv_bytes == 4 * 2 * 2 * 64 * 16 * 4  # layers, keys and values, heads, pairs, dim, float32
    share = found[0].usage.kept_kv_bytes / full[0].usage.kept_kv_bytes
    assert share < (0.4 if kind == "int8" else 0.3)  # in float32; a head of 16 channels shares a scale among 16
    for row, whole in zip(rows, found, strict=True):
        alone = engine.generate(row, max_new_tokens=10)[0]
        assert alone.token_ids == whole.token_ids
        assert alone.usage == whole.usage
        assert "".join(engine.stream(row, max_new_tokens=10)) == whole.text


def test_nothing_is_quantized_where_nothing_is_dropped(pair: tuple[LoadedModel, LoadedModel]) -> None:
    config = SpecKVConfig(max_capacity_prompt=64, lookahead_tokens=4, kv_quantization="int4")
    (row,) = rows_of((50,))
    (found,) = SpecKV(*pair, config).generate(row, max_new_tokens=10)
    plain = pair[0].model.generate(torch.tensor([row]), max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert found.token_ids == plain[0, 50:].tolist()
    assert found.usage.kept_kv_bytes is None


def test_rows_are_repeated_reordered_and_chosen_as_in_an_evicted_layer() -> None:
    keys, values = pairs((3, 2, 20, 8), torch.float32)
    indices = torch.arange(20).expand(3, 2, 20)[:, :, ::2]
    packed, plain = QuantizedLayer(KVQuantization(bits=4)), EvictedLayer()
    for layer in (packed, plain):
        layer.update(keys, values)
        layer.keep(indices, 20)
    plain.keys, plain.values = packed.unpacked()
    for seed, change in enumerate(
        [
            lambda layer: layer.batch_repeat_interleave(2),
            lambda layer: layer.reorder_cache(torch.tensor([1, 0, 5, 5, 2, 3])),
            lambda layer: layer.batch_select_indices(torch.tensor([True, False, False, True, True, False])),
            lambda layer: layer.reorder_cache(torch.tensor([2, 0, 1])),
        ]
    ):
        for layer in (packed, plain):
            change(layer)
        rows = 6 if seed < 2 else 3
        later = pairs((rows, 2, 1, 8), torch.float32, seed)
        for found, expected in zip(packed.update(*later), plain.update(*later), strict=True):
            assert torch.equal(found, expected)
        assert packed.get_seq_length() == plain.get_seq_length() == 21 + seed


def test_what_cannot_be_undone_is_refused() -> None:
    layer = QuantizedLayer(KVQuantization())
    layer.update(*pairs((1, 2, 20, 8), torch.float32))
    layer.keep(torch.arange(12).expand(1, 2, 12), 20)
    layer.update(*pairs((1, 2, 3, 8), torch.float32))
    assert layer.get_seq_length() == 23
    layer.crop(-2)
    assert (layer.get_seq_length(), layer.get_mask_sizes(1)) == (21, (14, 8))
    with pytest.raises(ValueError, match="only the 1 tokens after the prompt"):
        layer.crop(-2)
    with pytest.raises(NotImplementedError, match="cannot be used again"):
        layer.reset()


@pytest.mark.parametrize(("backend", "check"), [("hqq", "is_hqq_available"), ("quanto", "is_optimum_quanto_available")])
def test_a_missing_library_is_named_when_the_engine_is_made(
    pair: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch, backend: str, check: str
) -> None:
    monkeypatch.setattr(codec, check, lambda: False)
    config = SpecKVConfig(kv_quantization=KVQuantization(bits=4, backend=backend))
    with pytest.raises(MissingDependencyError, match=rf'backend "{backend}" needs.*\[quantization\]'):
        SpecKV(*pair, config)


def test_settings() -> None:
    assert SpecKVConfig().resolved_quantization() is None
    assert SpecKVConfig(kv_quantization="int8").resolved_quantization() == KVQuantization(bits=8)
    config = SpecKVConfig(kv_quantization=KVQuantization(bits=4, group_size=32))
    assert as_method("speckv", asdict(config)) == ("speckv", config)
    assert hash(config) == hash(SpecKVConfig(**asdict(config)))  # engines are shared by it
    for changes, message in [
        ({"kv_quantization": "int3"}, "kv_quantization must be one of 'int8', 'int4', None; got 'int3'"),
        ({"kv_quantization": "int8", "head_budgets": "adaptive"}, "kv_quantization must be None with head_budgets"),
        ({"kv_quantization": {"bits": 3}}, "bits must be one of 8, 4; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            SpecKVConfig(**changes)
    for changes, message in [
        ({"backend": "quanto"}, "bits must be one of 4; got 8"),
        ({"backend": "gptq"}, "backend must be one of 'torch', 'hqq', 'quanto'; got 'gptq'"),
        ({"group_size": 7}, "group_size must be even; got 7"),
        ({"group_size": 0}, "group_size must be an integer >= 2; got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            KVQuantization(**changes)
