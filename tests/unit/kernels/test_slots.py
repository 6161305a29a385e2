"""Steps over slots with the kernels: dense, ragged and quantized pairs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from draftapprox_integrations.decoding.cache import SlotCache
from draftapprox_integrations.decoding.step import Recorded
from tests.unit.decoding.test_slots import alone, config_of, together
from tests.unit.speckv.test_prefill import model_of


def rerun(cache: SlotCache) -> Callable[..., Recorded]:
    """Runs the work of fixed shapes anew each time: a tape cannot record kernels."""

    class Rerun:
        def __init__(self, work: Callable[[], None], warm_up: Callable[[], object]):
            warm_up()
            self.replay = work

    return Rerun


@pytest.mark.parametrize("name", ["adaptive", "int8"])  # of this family, half of the layers are dense
def test_rows_come_and_go(name: str, kernels: Any) -> None:
    model = model_of("gemma3_text")
    expected = alone(model, config_of(name), 2)
    for row, logits in enumerate(together(model, config_of(name), 1, rerun, join=1)):
        torch.testing.assert_close(logits, expected[row][: len(logits)], rtol=1e-4, atol=1e-4)
