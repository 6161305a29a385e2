"""The prefill needs the memory of a plain pass and the kept pairs, and nothing outlives it. In bytes, not in time."""

import ast
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import draftapprox_integrations
from draftapprox_integrations import SpecKV, SpecKVConfig, SpecPCConfig
from draftapprox_integrations.models.attention import attention_view, observing
from draftapprox_integrations.speckv.prefill import prefill
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.helpers.live_bytes import LiveBytes
from tests.unit.models.test_attention import Counter

TOKENS, LAYERS, KV_HEADS, HEAD_DIM, KEPT = 1024, 6, 2, 32, 64
PAIR_BYTES = 2 * KV_HEADS * HEAD_DIM * 2  # of one layer and token in bfloat16


@pytest.fixture(scope="module")
def model() -> Any:
    """Qwen2.5-14B's shapes, 16 times narrower."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128, hidden_size=320, num_hidden_layers=LAYERS, num_attention_heads=10,
        num_key_value_heads=KV_HEADS, intermediate_size=864, max_position_embeddings=4096,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


@pytest.fixture(autouse=True)
def without_the_garbage_collector() -> Iterator[None]:
    """What a reference cycle holds is then held until the test ends."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def prompt() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 128, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def prefill_peak(model: Any, lookahead: int, budgets: Any = "uniform") -> tuple[int, LiveBytes]:
    """The peak of the second of two prefills, and the tracker after their caches are gone."""
    ids, mask = prompt()
    config = SpecKVConfig(max_capacity_prompt=KEPT, window_size=16, kernel_size=5, head_budgets=budgets)
    guess = [torch.arange(lookahead)]
    with LiveBytes() as live:
        for _ in range(2):
            live.reset_peak()
            cache, evictor = prefill(attention_view(model), ids, mask, guess, config, record=False)
            assert live.bytes >= LAYERS * KEPT * PAIR_BYTES
            assert not evictor.kept
            assert not evictor.scores
            del cache, evictor
    return live.peak, live


@pytest.mark.parametrize("budgets", ["uniform", "adaptive"])
def test_peak_is_that_of_a_plain_pass_and_the_kept_pairs(model: Any, budgets: Any) -> None:
    ids, _ = prompt()
    with torch.inference_mode(), LiveBytes() as plain:
        model.model(ids, use_cache=False)
    assert plain.bytes == 0
    without, live = prefill_peak(model, 0, budgets)
    assert live.bytes == 0  # nothing was left over
    bound = 1.02 * plain.peak + LAYERS * KEPT * PAIR_BYTES + TOKENS * PAIR_BYTES
    assert without <= bound, live.at_peak[:12]
    with_guess, live = prefill_peak(model, 16, budgets)
    assert live.bytes == 0
    assert without <= 1.02 * with_guess
    assert with_guess <= bound * (TOKENS + 16) / TOKENS


def test_an_engine_keeps_nothing_of_a_finished_call(model: Any) -> None:
    engine = SpecKV((model, None), None, SpecKVConfig(max_capacity_prompt=KEPT, lookahead_tokens=0))
    with LiveBytes() as live:
        engine.generate(prompt()[0][0].tolist(), max_new_tokens=3)
        assert live.bytes == 0
        first = live.peak
        live.reset_peak()
        engine.generate(prompt()[0][0].tolist(), max_new_tokens=3)
    assert live.bytes == 0
    assert live.peak <= 1.001 * first


@pytest.mark.parametrize("draft_tokens", [False, True], ids=["stopped", "to the end"])
def test_scoring_keeps_only_scores(model: Any, draft_tokens: bool) -> None:
    ids, mask = prompt()
    with LiveBytes() as live:
        found = read_importance(attention_view(model), ids, mask, 16, SpecPCConfig(), draft_tokens=draft_tokens)
    assert found.scores.nbytes <= live.bytes <= found.scores.nbytes + 8  # and a drafted id
    del found
    assert live.bytes == 0


def test_a_stopped_pass_leaves_no_frames(model: Any) -> None:
    """As per-passage scoring stops its passes."""
    with torch.inference_mode(), LiveBytes() as live:
        for _ in range(2):
            with observing(Counter(stop_at=3)):
                attention_view(model)(prompt()[0], use_cache=False)
            assert live.bytes == 0


def test_no_generator_swallows_exceptions_for_a_with_block() -> None:
    """Such a context manager leaves a reference cycle on Python 3.12 and newer; see `observing`."""
    root = Path(draftapprox_integrations.__file__).parent
    for path in root.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or "contextmanager" not in map(
                ast.unparse, function.decorator_list
            ):
                continue
            for handler in (node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)):
                assert isinstance(handler.body[-1], ast.Raise), f"{path.name}: {function.name}"
