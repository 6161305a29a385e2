"""Targets and drafts with another attention than SDPA: the answers are the same.

flash-attn's kernels need a GPU. What stands in for them here follows their documentation, below transformers' own code:
masks, unpadding and the choice of kernel are transformers'. Views compute SDPA here, as on every CPU; with the kernels:
test_view_backends.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import masking_utils
from transformers.integrations import flex_attention as flex_utils

from draftapprox_integrations import (
    SpecKV,
    SpecKVConfig,
    SpecKVPCConfig,
    SpecPC,
    SpecPCConfig,
    load_model,
    patch_model,
)
from draftapprox_integrations.errors import MissingDependencyError, ModelLoadError
from draftapprox_integrations.models.attention import IMPLEMENTATION, attention_view
from draftapprox_integrations.speckv.prefill import prefill
from tests.conftest import tiny_llama
from tests.helpers.flash_kernels import installed
from tests.unit.models.test_attention import family
from tests.unit.speckv.test_prefill import batch_of, decode, model_of

pytestmark = pytest.mark.thorough

SPECKV: dict[str, Any] = {"max_capacity_prompt": 14, "window_size": 4, "kernel_size": 3}
SPECPC: dict[str, Any] = {"max_capacity_prompt": 30, "window_size": 6, "kernel_size": 5}
CASCADE = SpecKVPCConfig(specpc_config=SpecPCConfig(**SPECPC), speckv_config=SpecKVConfig(**SPECKV))
CONFIGS = {
    "speckv": SpecKVConfig(**SPECKV),
    "full": SpecKVConfig(max_capacity_prompt=400),
    "adaptive": SpecKVConfig(**SPECKV, head_budgets="adaptive"),
    "int8": SpecKVConfig(**SPECKV, kv_quantization="int8"),
    "specpc": SpecPCConfig(**SPECPC),
    "specpc, original": SpecPCConfig(**SPECPC),
    "cascade": CASCADE,
    "cascade, original": CASCADE,
}
LENGTHS = {"one": (80,), "padded": (80, 61, 25), "one fits whole": (80, 61, 9)}  # tokens of each row
ALONE = ("speckv", "full", "adaptive", "cascade")  # tested with one row where the others are with a padded batch
NEW = 8


def positions_of(name: Any) -> Any:
    """The engine's `positions` for a name in CONFIGS."""
    return "original" if name.endswith("original") else "renumber"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with installed(monkeypatch) as found:
        yield found


def rows_of(lengths: Any) -> Any:
    ids, mask, _ = batch_of(lengths)
    return ids, mask, [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def generated(target: Any, draft: Any, method: Any, rows: Any) -> Any:
    """Ids, and logits of each step."""
    seen = []
    found = SpecKV(target, draft, CONFIGS[method], positions=positions_of(method)).generate(
        rows, max_new_tokens=NEW, logits_processor=[lambda _, scores: seen.append(scores.clone()) or scores]
    )
    return [one.token_ids for one in found], torch.stack(seen)


@pytest.mark.parametrize(
    ("name", "method", "lengths"),
    [
        pytest.param(name, method, LENGTHS[rows], id=f"{name}-{method}-{rows}")
        for i, name in enumerate(["llama", "qwen2", "gemma3_text"])
        for j, method in enumerate(CONFIGS)
        for rows in [list(LENGTHS)[(i + j) % 3]]  # each two of name, method and lengths meet
    ],
)
def test_flash_attention_gives_what_sdpa_gives(kernels: Any, name: str, method: Any, lengths: Any) -> None:
    _, _, rows = rows_of(lengths)
    expected = generated(model_of(name), family("qwen3", "sdpa"), method, rows)
    assert not kernels.calls
    target, draft = model_of(name, "flash_attention_2"), family("qwen3", "sdpa")
    draft.config._attn_implementation = "flash_attention_2"
    found = generated(target, draft, method, rows)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert target.config._attn_implementation == draft.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("lengths", [(80,), (80, 61, 25)], ids=["one", "padded"])
def test_on_a_cpu_the_view_does_not_call_the_kernel_and_the_users_model_still_does(kernels: Any, lengths: Any) -> None:
    ids, mask, lookahead = batch_of(lengths)
    model = model_of("llama", "flash_attention_2")
    view = attention_view(model)
    cache, _ = prefill(view, ids, mask, lookahead, CONFIGS["speckv"])
    SpecPC(model, CONFIGS["specpc"]).select(ids, mask)
    assert not kernels.calls
    assert (view.config._attn_implementation, model.config._attn_implementation) == (
        IMPLEMENTATION,
        "flash_attention_2",
    )
    more = torch.randint(0, 128, (len(lengths), 6), generator=torch.Generator().manual_seed(2))
    whole, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    found = decode(model, cache, whole, whole_mask, [1, 1, 3, 2])  # one by one, and a second turn's longer pieces
    assert kernels.calls
    calls = len(kernels.calls)
    again, _ = prefill(view, ids, mask, lookahead, CONFIGS["speckv"])
    torch.testing.assert_close(found, decode(view, again, whole, whole_mask, [1, 1, 3, 2]), rtol=1e-4, atol=1e-4)
    assert len(kernels.calls) == calls


def test_who_decodes(kernels: Any) -> None:
    """The user's kernel reads a prompt that loses no pairs; what evicts, and the steps, are the view's."""
    _, _, rows = rows_of((80,))
    for name, users in {
        "speckv": False,
        "full": True,
        "specpc": True,
        "adaptive": False,
        "cascade, original": False,
    }.items():
        kernels.calls.clear()
        generated(model_of("llama", "flash_attention_2"), family("qwen3", "sdpa"), name, rows)
        assert bool(kernels.calls) == users, name


@pytest.mark.parametrize("first", [0, 3])
def test_gaps_are_one_prompt_to_flash_attention(kernels: Any, first: int) -> None:
    """transformers looks in positions for several prompts in one row; the first token need not be the prompt's."""
    ids, positions = torch.arange(5, 17)[None], torch.tensor([[first, 4, 5, 9, 10, 11, 12, 13, 20, 21, 22, 23]])
    options: dict[str, Any] = {"position_ids": positions, "max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model_of("llama").generate(ids, **options).logits[0]
    found = model_of("llama", "flash_attention_2").generate(ids, **options).logits[0]
    assert set(kernels.calls) == {"varlen"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_drop_in_with_flash_attention(kernels: Any) -> None:
    ids, mask, _ = rows_of((80, 61, 25))
    for name, config in CONFIGS.items():
        out = []
        for implementation in ("sdpa", "flash_attention_2"):
            model = model_of("llama", implementation)
            patched = patch_model(model, model_of("llama"), config, positions=positions_of(name))
            out.append(patched.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0))
        assert torch.equal(*out)


@pytest.mark.parametrize("method", list(CONFIGS))
def test_eager_gives_what_sdpa_gives(method: Any) -> None:
    _, _, rows = rows_of(LENGTHS["one" if method in ALONE else "one fits whole"])
    expected = generated(model_of("gemma3_text"), family("qwen3", "sdpa"), method, rows)
    found = generated(model_of("gemma3_text", "eager"), family("qwen3", "eager"), method, rows)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("method", list(CONFIGS))
def test_flex_attention_gives_what_sdpa_gives(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    # its unfused form: compiling needs a C++ compiler
    mask = masking_utils.create_block_mask  # type: ignore[attr-defined]
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda *args, **kw: mask(*args, **(kw | {"_compile": False}))
    )
    unfused = flex_utils.flex_attention  # type: ignore[attr-defined]
    monkeypatch.setattr(flex_utils.WrappedFlexAttention, "__call__", lambda self: unfused)
    _, _, rows = rows_of(LENGTHS["one" if method in ALONE else "one fits whole"])
    expected = generated(model_of("llama"), family("qwen3", "sdpa"), method, rows)
    found = generated(model_of("llama", "flex_attention"), family("qwen3", "flex_attention"), method, rows)
    assert found[0] == expected[0]
    # in 8 bits a rounding error of the prefill can be a whole step
    atol = 1e-2 if method == "int8" else 1e-4
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=atol)


def test_load_model_passes_the_implementation_on(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    plain, eager = load_model(tmp_path), load_model(tmp_path, attn_implementation="eager", dtype="bfloat16")
    assert plain.model.config._attn_implementation == "sdpa"
    assert (eager.model.config._attn_implementation, eager.dtype) == ("eager", torch.bfloat16)
    assert load_model(tmp_path, attn_implementation="eager", dtype="bfloat16") is eager
    with pytest.raises(MissingDependencyError, match=r"needs another package.*[Ff]lash"):
        load_model(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ModelLoadError, match="could not load"):
        load_model(tmp_path, attn_implementation="quick")
