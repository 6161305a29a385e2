"""Steps of fixed shapes, recorded once and replayed, write what `model.generate` writes."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from draftapprox_integrations.decoding import step as steps
from draftapprox_integrations.decoding.buffered import RESERVE, BufferedLayer
from draftapprox_integrations.decoding.greedy import generate_greedily
from draftapprox_integrations.errors import UnsupportedModelError
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.models.loading import pad_left
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.helpers.families_checks import GENERATE, SPECPC, model_of, prompts
from tests.helpers.tape import record_tape

NEW = 15
# Full attention, windows, shared pairs, convolutions, recurrent states, latents, chunks, experts, learned positions.
FAMILIES = ["llama", "gemma3_text", "gemma3n_text", "lfm2", "jamba", "deepseek_v3", "llama4", "mixtral", "gpt2"]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[steps.Step]]:
    """Steps record tapes instead of CUDA graphs; the list holds the steps that were made."""
    made: list[steps.Step] = []
    original: Any = steps.Step.__init__

    def init(step: steps.Step, *args: Any, **kwargs: Any) -> None:
        def record(work: Callable[[], None], warm_up: Callable[[], object]) -> steps.Recorded:
            tape = record_tape(work, warm_up)
            step.cache.load_counts()  # a capture does not run what it records
            return tape

        original(step, *args, **kwargs | {"record": record})
        made.append(step)

    monkeypatch.setattr(steps.Step, "__init__", init)
    yield made
    steps._unrecorded.clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_equal_to_generate(name: str, tapes: list[steps.Step]) -> None:
    model = model_of(name)
    ids, mask = pad_left(prompts())
    alone = name == "llama4"  # padded rows are refused
    for row in [slice(1)] if alone else [slice(1), slice(2)]:
        expected = model.generate(ids[row], attention_mask=mask[row], **GENERATE | {"max_new_tokens": NEW})
        found = generate_greedily(model, ids[row], mask[row], NEW, [])
        assert found.tolist() == expected[:, ids.shape[1] :].tolist()
    assert all(step.is_recorded for step in tapes)


def test_what_cannot_be_recorded_runs_eagerly_and_is_said_once(
    tapes: list[steps.Step], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("dbrx")
    ids, mask = pad_left(prompts())
    expected = model.generate(ids, attention_mask=mask, **GENERATE | {"max_new_tokens": NEW})[:, ids.shape[1] :]
    with caplog.at_level(logging.WARNING, logger=steps.logger.name):
        for _ in range(2):
            assert generate_greedily(model, ids, mask, NEW, []).tolist() == expected.tolist()
    assert len(caplog.messages) == 1
    assert "steps of DbrxForCausalLM are not recorded" in caplog.messages[0]
    assert not any(step.is_recorded for step in tapes)


def test_the_drafts_lookahead_is_scored_in_recorded_steps(tapes: list[steps.Step]) -> None:
    ids, mask = pad_left(prompts())
    view = attention_view(model_of("gemma3_text"))
    recorded = read_importance(view, ids, mask, 7, SPECPC)
    assert all(step.is_recorded for step in tapes)
    tapes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_unrecorded", {view})
        eager = read_importance(view, ids, mask, 7, SPECPC)
    assert not any(step.is_recorded for step in tapes)
    torch.testing.assert_close(recorded.scores, eager.scores, rtol=1e-5, atol=1e-6)
    assert [row.tolist() for row in recorded.lookahead_ids] == [row.tolist() for row in eager.lookahead_ids]


def test_positions_that_change_on_the_way_are_refused() -> None:
    ids = torch.tensor([prompts()[0]])
    with pytest.raises(UnsupportedModelError, match="changes its positions at 44 tokens"):
        generate_greedily(model_of("phi3+longrope"), ids, torch.ones_like(ids), 20, [])


def test_a_buffer_grows_and_a_cropped_one_is_not_written_over() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 2, 200, 4, generator=generator)
    layer = BufferedLayer(reserve=8)
    start = 0
    for width in (20, *[1] * 30, 100, 1, 1):
        keys, values = layer.update(states[:, :, start : start + width], -states[:, :, start : start + width])
        start += width
        assert torch.equal(keys, states[:, :, :start])
        assert torch.equal(values, -states[:, :, :start])
    before = keys
    layer.crop(-3)
    layer.update(states[:, :, :1], states[:, :, :1])
    assert torch.equal(before, states[:, :, :start])  # who holds on to the keys keeps them
    assert layer.get_seq_length() == start - 2
    buffers = layer.take_buffers()
    assert buffers[0].shape[2] >= start - 2 + RESERVE
    assert torch.equal(buffers[0][:, :, : start - 3], states[:, :, : start - 3])
