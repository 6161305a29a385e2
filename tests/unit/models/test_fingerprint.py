"""Fingerprints: any change of any weight is seen, a change of precision is not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecPC, load_model
from draftapprox_integrations.models.fingerprint import fingerprint, same_model
from draftapprox_integrations.specpc.scoring.heads import HeadSet, find_heads
from tests.conftest import tiny_llama

PASSAGES = ["The old mill was built in 1821. It is small.", "The bridge was opened in 1932. It is red."]


def merge_adapter(model: Any, *names: str) -> None:
    """As a LoRA of rank 2 that is merged into the named projections of the first layer."""
    generator = torch.Generator().manual_seed(3)
    for name in names:
        weight = getattr(model.model.layers[0].self_attn, name).weight
        low = torch.randn(weight.shape[0], 2, generator=generator) @ torch.randn(
            2, weight.shape[1], generator=generator
        )
        weight.data += 0.02 * low.to(weight.dtype)


def swap_rows(weight: torch.Tensor) -> None:
    weight[[0, 1]] = weight[[1, 0]]


def swap_columns(weight: torch.Tensor) -> None:
    weight[:, [0, 1]] = weight[:, [1, 0]]


def keep_all_sums(weight: torch.Tensor) -> None:
    """Row and column sums stay the same, in bits as well as in values."""
    weight[0, 0], weight[0, 1], weight[1, 0], weight[1, 1] = 1.0, 2.0, 2.0, 1.0


def turn_over(weight: torch.Tensor) -> None:
    weight[:] = -weight


def one_value(weight: torch.Tensor) -> None:
    weight[-1, -1] += 0.125


CHANGES = [swap_rows, swap_columns, turn_over, one_value]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_of_any_weight_is_seen(change: Callable[[torch.Tensor], None]) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    seen = {fingerprint(model)}
    for count, (_, weight) in enumerate(model.named_parameters(), 2):
        with torch.no_grad():
            if weight.dim() == 1:
                weight[0] += 0.5
            else:
                change(weight)
        seen.add(fingerprint(model))
        assert len(seen) == count


def test_a_change_that_keeps_the_sums_of_rows_and_columns_is_seen() -> None:
    model = tiny_llama()
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[:2, :2] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        before = fingerprint(model)
        keep_all_sums(weight)
    assert fingerprint(model) != before


def test_a_merged_adapter_is_another_model_and_its_passages_are_read_anew(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = tiny_llama()
    merged = copy.deepcopy(base)
    key = fingerprint(merged)
    merge_adapter(merged, "q_proj", "k_proj")  # in place, through `.data`, after the model was known
    found = fingerprint(merged)
    assert key == fingerprint(base) != found
    assert key is not None
    assert found is not None
    assert not same_model(key, found)

    def ingest(model: Any) -> int:
        draft = load_model((model, tiny_tokenizer))
        heads = HeadSet("tiny", str(fingerprint(model)), ((1, 0),))
        return SpecPC(draft, scorer="heads", heads=heads, store=tmp_path / "store.db").ingest(PASSAGES)

    first = ingest(base)
    assert first > 0
    assert ingest(base) == 0
    assert ingest(merged) == first


@settings(max_examples=40, deadline=None)
@given(scale=st.sampled_from([1e-6, 1e-5, 3e-5, 1e-3, 1.0, 300.0]), seed=st.integers(0, 1000))
def test_precision_is_not_seen(scale: float, seed: int) -> None:
    model = tiny_llama(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=64)
    torch.manual_seed(seed)
    for weight in model.parameters():
        nn.init.normal_(weight, std=scale)
    model = model.to(torch.bfloat16)
    keys = {fingerprint(copy.deepcopy(model).to(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    assert len(keys) == 1


def test_tied_weights_count_once_and_offloaded_ones_give_no_key() -> None:
    tied = tiny_llama(tie_word_embeddings=True)
    names = [name for name, _ in tied.named_parameters()]
    assert "lm_head.weight" not in names
    assert fingerprint(tied) == fingerprint(copy.deepcopy(tied))
    tied.model.layers[2].mlp.to("meta")
    assert fingerprint(tied) is None


class Packed(nn.Linear):
    """A layer as quantized formats have it: whole numbers in place of the weights."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = nn.Parameter((layer.weight * 100).round().to(torch.int8), requires_grad=False)


def quantized(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.up_proj = Packed(layer.mlp.up_proj)
    return model


def test_a_quantized_model_gets_the_heads_of_the_one_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(tmp_path))
    key, packed = fingerprint(tiny_llama()), quantized(tiny_llama())
    assert key is not None
    assert fingerprint(packed) == key.partition("-")[0]
    assert find_heads(packed) is None
    HeadSet("tiny", key, ((1, 0),)).save()
    found = find_heads(packed)
    assert found is not None
    assert found.fingerprint == key
    other = tiny_llama()
    merge_adapter(other, "q_proj")
    assert find_heads(other) is None
    HeadSet("merged", str(fingerprint(other)), ((2, 0),)).save()
    assert find_heads(packed) is None  # it might be either
    own = HeadSet("packed", str(fingerprint(packed)), ((3, 0),))
    own.save()
    assert find_heads(packed) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_packages_heads_are_those_of_the_embedded_model_in_any_precision(
    embedded_model: LoadedModel, dtype: torch.dtype
) -> None:
    model = copy.deepcopy(embedded_model.model).to(dtype)
    found = find_heads(model)
    assert found is not None
    assert found.fingerprint == fingerprint(model)


def test_the_packages_heads_serve_other_formats_of_the_embedded_model_with_keys_of_their_own(
    embedded_model: LoadedModel, tmp_path: Path
) -> None:
    """They were calibrated on a 4-bit file; the model's original has other matrices and the same norms."""
    model = copy.deepcopy(embedded_model.model)
    merge_adapter(model, "v_proj")
    found = find_heads(model)
    assert found == find_heads(embedded_model.model)
    other = load_model((model, embedded_model.tokenizer))
    first = SpecPC(embedded_model, scorer="heads", store=tmp_path / "store.db").ingest(PASSAGES[:1])
    assert first > 0
    assert SpecPC(other, scorer="heads", store=tmp_path / "store.db").ingest(PASSAGES[:1]) == first
