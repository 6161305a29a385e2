"""The parts of the comparison with kvpress that run without it: budgets, rows, prompts, tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import export_prompts, kvpress_table
from benchmarks.peers.rows import ratio_for, read_rows
from draftapprox_integrations import LoadedModel
from draftapprox_integrations.speckv.lookahead import SelfLookahead
from draftapprox_integrations.specpc.calibration.questions import read_tasks
from tests.conftest import ROOT


@given(st.integers(1, 200_000), st.data())
def test_the_ratio_keeps_exactly_the_budget(tokens: int, data: Any) -> None:
    budget = data.draw(st.integers(1, tokens))
    ratio = ratio_for(tokens, budget)
    assert 0 <= ratio < 1
    assert max(1, int(tokens * (1 - ratio))) == budget  # as kvpress computes it
    assert ratio_for(tokens, tokens + budget) == 0


def test_a_budget_of_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 pair"):
        ratio_for(10, 0)


def test_a_row_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"id": 1}\n{"id": 2, "answer": "}\\n{"}\n{"id": 3, "ans', encoding="utf-8")
    assert [row["id"] for row in read_rows(path)] == [1, 2]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": 3}\n')
    assert [row["id"] for row in read_rows(path)] == [1, 2, 3]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {"question": f"Who built mill {n}?", "passages": [f"Ann built mill {n}. It is old.", "Rain fell."],
         "titles": ["Mill", None], "evidence": [f"Ann built mill {n}."], "answer": "Ann"}
        for n in range(3)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_exported_prompts(tiny: LoadedModel, questions: Path, tmp_path: Path) -> None:
    out, tasks = tmp_path / "out.jsonl", read_tasks(questions, seed=0)
    rows = list(export_prompts.export(tasks, tiny, tiny, 5, out, "data-0"))
    assert read_rows(out) == rows
    assert [row["id"] for row in rows] == ["data-0-0", "data-0-1", "data-0-2"]
    for number, row in enumerate(rows):
        content = (
            f"Context:\nMill\nAnn built mill {number}. It is old.\n\nRain fell.\n\nQuestion: Who built mill {number}?"
        )
        assert row["prompt"] == f"<|user|>{export_prompts.INSTRUCTION}\n\n{content}<|end|><|assistant|>"
        assert row["answer"] == "Ann"
        ids = torch.tensor([tiny.require_tokenizer()(row["prompt"], add_special_tokens=False)["input_ids"]])
        assert row["tokens"] == ids.shape[1]
        mask = torch.ones_like(ids)
        written = tiny.model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert row["lookahead"] == written[0, ids.shape[1] :].tolist()
        assert row["self_lookahead"] == SelfLookahead(tiny).draft(ids, mask, 5)[0].tolist()


def test_an_export_goes_on_from_its_file(tiny: LoadedModel, questions: Path, tmp_path: Path) -> None:
    out, tasks = tmp_path / "out.jsonl", read_tasks(questions, seed=0)
    whole = list(export_prompts.export(tasks, tiny, tiny, 3, tmp_path / "whole.jsonl", "q"))
    marked = whole[0] | {"lookahead": [511]}  # made by an earlier run: it is not made again
    out.write_text(json.dumps(marked) + "\n" + json.dumps(whole[1])[:30], encoding="utf-8")
    assert list(export_prompts.export(tasks, tiny, tiny, 3, out, "q")) == [marked, *whole[1:]]
    assert read_rows(out) == [marked, *whole[1:]]


def row(key: int, press: str, budget: int | None, likelihood: float, kl: float, answer: str | None) -> dict[str, Any]:
    found = {"id": key, "press": press, "budget": budget, "likelihood": likelihood, "kl": kl, "answer": answer}
    return found | {"gold": "Ann", "tokens": 100 + key}


def test_the_table_pairs_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(key, "full", None, -1.0, 0.0, "Ann") for key in range(3)]
    rows += [row(key, "SnapKV", 64, -2.0 - key, 0.5, "Bob") for key in range(3)]
    rows += [row(key, "SpecKV", 64, -1.5 - key, 0.25, "the Ann!") for key in range(2)]  # the third is missing
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    kvpress_table.main([str(path)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "3 questions, 101 prompt tokens on average"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[2:]]
    assert cells[2] == ["", "full", "3", "-1.000", "", "0.000", "", "100", "100"]
    assert cells[3] == ["64", "SnapKV", "3", "-3.000", "", "0.500", "", "0", "0"]
    gain, less = "+0.500 (+0.500 to +0.500)", "-0.250 (-0.250 to -0.250)"  # of the two shared questions
    assert cells[4] == ["64", "SpecKV", "2", "-2.000", gain, "0.250", less, "100", "100"]


def test_the_table_without_answers_has_no_columns_for_them() -> None:
    text = kvpress_table.report([row(0, "full", None, -1.0, 0.0, None), row(0, "SnapKV", 8, -2.0, 0.1, None)])
    assert "F1" not in text
    assert text.splitlines()[-1] == "| 8 | SnapKV | 1 | -2.000 |  | 0.100 |  |"


def test_the_press_needs_nothing_of_this_repository() -> None:
    """Users of kvpress copy the file."""
    source = (ROOT / "benchmarks" / "peers" / "speckv_press.py").read_text()
    assert "draftapprox_integrations" not in source
    assert "from ." not in source
