"""Rows that join, move and leave a running batch compute what each computes alone with the prefilled cache itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from draftapprox_integrations import SpecKVConfig
from draftapprox_integrations.decoding.cache import SlotCache, chunked_layers
from draftapprox_integrations.decoding.step import Recorded, Step
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache.ragged import decoding_model
from draftapprox_integrations.speckv.prefill import prefill, slots_maker
from tests.helpers.tape import record_tape
from tests.unit.speckv.test_prefill import batch_of, model_of

LENGTHS = (40, 29, 33)
STEPS = 90  # more than the spare room of a buffer, so that buffers grow on the way
CONFIGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "adaptive": {"head_budgets": "adaptive"},
    "int8": {"kv_quantization": "int8"},
    "int4": {"kv_quantization": "int4"},
}


def config_of(name: str) -> SpecKVConfig:
    return SpecKVConfig(max_capacity_prompt=14, window_size=4, kernel_size=3, **CONFIGS[name])


def fed_tokens(ids: Tensor) -> Tensor:
    """The last prompt token of each row and what follows it."""
    more = torch.randint(0, 128, (len(ids), STEPS), generator=torch.Generator().manual_seed(2))
    return torch.cat([ids[:, -1:], more], dim=1)


@torch.inference_mode()
def alone(model: Any, config: SpecKVConfig, steps: int) -> list[Tensor]:
    """Per row the logits of each step, with the cache that the prefill made."""
    ids, mask, lookahead = batch_of(LENGTHS)
    found = []
    for row, n in enumerate(LENGTHS):
        part = slice(row, row + 1), slice(40 - n, 40)
        cache, _ = prefill(attention_view(model), ids[part], mask[part], [lookahead[row]], config)
        decoder, tokens = decoding_model(model, cache), fed_tokens(ids)[row]
        steps_logits = [
            decoder(tokens[i].view(1, 1), position_ids=torch.tensor([[n - 1 + i]]), past_key_values=cache).logits[0, -1]
            for i in range(steps)
        ]
        found.append(torch.stack(steps_logits))
    return found


def taped(cache: SlotCache) -> Callable[..., Recorded]:
    """Records steps as a CUDA graph would; a capture does not run what it records, so its counts are put back."""

    def record(work: Callable[[], None], warm_up: Callable[[], object]) -> Recorded:
        tape = record_tape(work, warm_up)
        cache.load_counts()
        return tape

    return record


@torch.inference_mode()
def together(
    model: Any,
    config: SpecKVConfig,
    steps: int,
    recorder: Callable[[SlotCache], Any] | None = None,
    *,
    join: int = 5,
    leave: int = 40,
) -> list[Tensor]:
    """Per row its logits. Rows 1 and 2 join after some steps; then row 0 leaves, and the last row takes its slot."""
    ids, mask, lookahead = batch_of(LENGTHS)
    view, tokens = attention_view(model), fed_tokens(ids)
    first, _ = prefill(view, ids[:1], mask[:1], lookahead[:1], config)
    cache = SlotCache(first, chunked_layers(model), slots_maker(config))
    cache.resize(1)
    cache.admit([0], first, [39])
    step = Step(view, cache, record=recorder and recorder(cache))
    logits: list[list[Tensor]] = [[], [], []]
    rows = [0]
    for i in range(steps + join):
        if i == join:
            others, _ = prefill(view, ids[1:, 7:], mask[1:, 7:], lookahead[1:], config)
            cache.resize(4)
            cache.admit([1, 2], others, [28, 32])
            rows = [0, 1, 2]
        if i == leave:
            cache.move(2, 0)
            rows = [2, 1]
        fed = [len(logits[row]) for row in rows]
        out = step(
            torch.stack([tokens[row, n] for row, n in zip(rows, fed, strict=True)])[:, None],
            torch.tensor([LENGTHS[row] - 1 + n for row, n in zip(rows, fed, strict=True)])[:, None],
        )
        for index, row in enumerate(rows):
            logits[row].append(out[index].clone())
    assert step.is_recorded == (recorder is not None)
    return [torch.stack(row) for row in logits]


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(
    ("family", "recorded"),
    [("llama", False), ("llama", True), ("gemma3_text", True)],
    ids=["eager", "recorded", "gemma"],
)
def test_rows_come_and_go(family: str, recorded: bool, name: str) -> None:
    model = model_of(family)
    expected = alone(model, config_of(name), STEPS)
    found = together(model, config_of(name), STEPS, taped if recorded else None)
    for row, logits in enumerate(found):
        assert len(logits) >= 40
        torch.testing.assert_close(logits, expected[row][: len(logits)], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_what_a_slot_held_before_does_not_matter() -> None:
    model = model_of("llama")
    ids, mask, lookahead = batch_of((40, 40))
    view, config = attention_view(model), config_of("uniform")
    cache, _ = prefill(view, ids[:1], mask[:1], lookahead[:1], config)
    slots = SlotCache(cache)
    slots.resize(2)
    slots.admit([0], cache, [39])
    for layer in slots.layers:
        for buffer in layer.buffers:
            buffer[1] = torch.nan  # a row whose numbers overflowed
    cache, _ = prefill(view, ids[1:], mask[1:], lookahead[1:], config)
    slots.admit([1], cache, [39])
    slots.tokens[0] += 3  # rows of different lengths, so that a mask is needed
    for span in {id(layer.span): layer.span for layer in slots.layers}.values():
        span.ends[0] += 3
    logits = Step(view, slots)(torch.tensor([[5], [6]]), torch.tensor([[42], [39]]))
    assert torch.isfinite(logits).all()
