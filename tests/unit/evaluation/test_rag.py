"""What is kept of passages, measured against answers and evidence."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecPC
from draftapprox_integrations.evaluation.methods import method_config
from draftapprox_integrations.evaluation.rag import evaluate_rag, exact_and_f1, summary, ways_of
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task

TASK = Task(
    "own",
    "What colour is the bridge?",
    [None, "Bridge"],
    ["The mill is old. It was built in 1821.", "It is long. The bridge is red. It is from 1932."],
    [(1, (12, 30))],
    "red",
)


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Red!", "red", 1, 1),
        ("It is red", "red", 0, 0.5),
        ("blue", "red", 0, 0),
        ("", "red", 0, 0),
        ("the", "a", 1, 1),
        ("two red red ones", "red red", 0, 2 / 3),
    ],
)
def test_exact_match_and_f1(answer: str, gold: str, exact: float, f1: float) -> None:
    assert exact_and_f1(answer, gold) == pytest.approx((exact, f1))


def test_ways_keep_to_the_budget(tiny: LoadedModel) -> None:
    ways = ways_of(SpecPC(tiny))
    assert list(ways) == ["specpc", "bm25", "first"]
    count = SpecPC(tiny).count_tokens
    for budget in (1, 15, 30, 1000):
        for name, way in ways.items():
            kept = way(TASK, budget)
            assert len(kept) == 2
            assert sum(count([text for text in kept if text])) <= max(budget, 2), name
    assert "The bridge is red." in ways["bm25"](TASK, 15)[1]
    assert ways["first"](TASK, 15) == ["The mill is old.", ""]
    assert ways["first"](TASK, 1000) == TASK.passages


def test_a_run_that_was_killed_goes_on(
    tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    reader = SpecKV(tiny, None, method_config("full", {}, tiny.context_window))
    path = tmp_path / "rows.jsonl"
    made: list[Any] = []
    asked = {"all": lambda task, budget: made.append(budget) or list(task.passages)}
    rows = list(evaluate_rag([TASK, TASK], asked, reader, [10, 20], path, max_new_tokens=3))
    assert [(row["task"], row["way"], row["budget"]) for row in rows] == [
        (task, way, budget) for task in (0, 1) for way, budget in (("full", None), ("all", 10), ("all", 20))
    ]
    assert made == [10, 20, 10, 20]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed while it wrote
    again = list(evaluate_rag([TASK, TASK], asked, reader, [10, 20], path, max_new_tokens=3))
    assert made == [10, 20, 10, 20, 20, 10, 20]
    for one, other in zip(rows, again, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 6
    full, first, _ = summary(rows)
    assert (full["way"], full["budget"], full["tasks"], full["evidence"]) == ("full", None, 2, 1.0)
    assert first["likelihood"] == full["likelihood"] < 0
