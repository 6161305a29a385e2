"""The token-level form: budgets, protection, laziness, bad input."""

from typing import Any

import pytest
import torch

from draftapprox_integrations import LoadedModel, SpecPC, SpecPCConfig
from draftapprox_integrations.errors import BudgetError, InvalidInputError
from draftapprox_integrations.models.attention import attention_view
from tests.conftest import tiny_llama

CONFIG = SpecPCConfig(max_capacity_prompt=32, window_size=8, kernel_size=5)


def ids_of(n: Any, seed: int = 0) -> Any:
    return torch.randint(2, 512, (1, n), generator=torch.Generator().manual_seed(seed))


class Reads:
    """Counts how often the draft runs."""

    def __init__(self, engine: Any) -> None:
        self.count = 0
        attention_view(engine.draft.model).register_forward_pre_hook(self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


@pytest.fixture
def engine() -> Any:
    return SpecPC(tiny_llama(), CONFIG)


def test_a_short_prompt_passes_without_running_the_draft(engine: Any) -> None:
    reads = Reads(engine)
    selection = engine.select(ids_of(32))
    assert selection.indices[0].tolist() == list(range(32))
    assert reads.count == 0
    scores = selection.scores  # asking for them is another matter
    assert reads.count == 1
    assert scores.shape == (1, 32)
    assert scores.gt(0).any()
    assert len(selection.lookahead_ids[0]) == 1
    assert reads.count == 1


def test_only_the_rows_that_are_too_long_are_read(engine: Any) -> None:
    batch, mask = torch.zeros(3, 60, dtype=torch.long), torch.zeros(3, 60, dtype=torch.long)
    for row, n in enumerate((60, 5, 20)):
        batch[row, 60 - n :], mask[row, 60 - n :] = ids_of(n, row)[0], 1
    seen = []
    view = attention_view(engine.draft.model)
    view.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape), with_kwargs=True)
    selection = engine.select(batch, mask)
    assert seen == [(1, 60)]
    assert [len(row) for row in selection.indices] == [32, 5, 20]
    assert selection.indices[1].tolist() == list(range(55, 60))
    assert torch.isfinite(selection.scores).all()
    assert selection.scores[1, :55].eq(0).all()
    assert selection.scores[1, 55:].gt(0).any()


def test_bos_is_never_dropped(engine: Any) -> None:
    ids = ids_of(100)
    without = engine.select(ids).indices[0].tolist()
    assert 0 not in without  # so the next line shows something
    ids[0, 0] = 0  # <s> of the tiny model
    assert engine.select(ids).indices[0][0] == 0


def test_protected_positions_stay_within_the_budget(engine: Any) -> None:
    protected = torch.zeros(1, 100, dtype=torch.bool)
    protected[0, [3, 50, 51]] = True
    kept = engine.select(ids_of(100), protected=protected).indices[0].tolist()
    assert {3, 50, 51} | set(range(92, 100)) <= set(kept)
    assert len(kept) == 32
    protected[0, :40] = True
    with pytest.raises(BudgetError, match="need 50 tokens, max_capacity_prompt is 32. Raise it to at least 50"):
        engine.select(ids_of(100), protected=protected)


def test_one_prompt_may_be_a_list(engine: Any) -> None:
    ids = ids_of(50)
    assert engine.select(ids[0].tolist()).indices[0].tolist() == engine.select(ids).indices[0].tolist()


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(1, 3), None, "integers of shape"),
        (torch.zeros(1, 2, 3, dtype=torch.long), None, "integers of shape"),
        (torch.zeros(1, 0, dtype=torch.long), None, "at least one token"),
        (torch.zeros(0, 4, dtype=torch.long), None, "at least one token"),
        (torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]), "at least one token"),
        (torch.ones(2, 4, dtype=torch.long), torch.ones(2, 3), "attention_mask must have the shape"),
        (torch.tensor([[5, 512]]), None, r"in \[0, 512\).*got 5 to 512"),
        (torch.tensor([[-1, 5]]), None, r"in \[0, 512\).*got -1 to 5"),
        (torch.ones(1, 5000, dtype=torch.long), None, "has 5000 tokens.*reads at most 4096.*compress"),
    ],
)
def test_bad_ids_are_refused(engine: Any, ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        engine.select(ids, mask)


def test_a_layer_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="starting_layer_index must be < 4"):
        SpecPC(tiny_llama(), SpecPCConfig(starting_layer_index=4))


def test_a_model_without_a_tokenizer_says_how_to_give_it_text(engine: Any) -> None:
    assert isinstance(engine.draft, LoadedModel)
    with pytest.raises(InvalidInputError, match=r"no tokenizer.*load_model\(\(model, tokenizer\)\)"):
        engine.compress(["text"], "question")
