"""Questions that make themselves, and the heads that are found with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecPC, load_model
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.models.embedded import cache_folder
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.specpc.calibration.calibrate import calibrate, choose_heads, reciprocal_rank
from draftapprox_integrations.specpc.calibration.synthetic_tasks import make_tasks
from draftapprox_integrations.specpc.scoring.heads import HeadSet, find_heads
from tests.conftest import DEMO, tiny_llama


def test_tasks_hold_their_own_answers() -> None:
    tasks = make_tasks(30, passages=8, seed=3)
    assert {task.shape for task in tasks} == {"prose", "pairs", "hops"}
    for task in tasks:
        assert len(task.passages) == len(task.titles) == 8
        told = [task.passages[index][start:end] for index, (start, end) in task.evidence]
        assert len(told) == (2 if task.shape == "hops" else 1)
        assert task.answer in told[-1]
        assert task.answer not in task.question
    assert tasks == make_tasks(30, passages=8, seed=3)
    assert tasks != make_tasks(30, passages=8, seed=4)
    with pytest.raises(ValueError, match="passages must be >= 4"):
        make_tasks(1, passages=3)


def test_the_heads_that_rank_evidence_first_are_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    measured = []
    for _ in range(20):
        values = torch.rand(6, 10, generator=generator)
        values[4, 3] = 2.0  # head 4 always finds it, head 1 half of the time
        if torch.rand(1, generator=generator) < 0.5:
            values[1, 3] = 2.0
        measured.append((values, [3]))
    assert choose_heads(measured, 2) == [4, 1]
    assert reciprocal_rank(measured, [4]) == 1.0
    assert len(choose_heads(measured, 99)) == 6


def test_ties_are_no_success() -> None:
    assert reciprocal_rank([(torch.zeros(1, 10), [3])], [0]) == pytest.approx(0.1)


def test_calibrated_heads_are_found_by_every_specpc(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(tmp_path))
    draft = load_model((tiny_llama(), tiny_tokenizer))
    assert find_heads(draft.model) is None
    seen = []
    found = calibrate(draft, tasks=6, heads=3, progress=lambda done, total: seen.append((done, total)))
    assert found == calibrate(draft, tasks=6, heads=3)
    assert len(found.heads) == 3
    assert seen[-1] == (8, 8)
    path = found.save()
    assert path.is_relative_to(cache_folder())
    assert find_heads(draft.model) == found
    pc = SpecPC(draft, scorer="heads")
    assert pc.compress(["One. Two.", "Three. Four."], "two?", max_tokens=4).tokens_after > 0
    assert find_heads(tiny_llama(hidden_size=32)) is None
    path.unlink()
    with pytest.raises(InvalidInputError, match="never calibrated"):
        SpecPC(draft, scorer="heads").compress(["One. Two.", "Three. Four."], "two?", max_tokens=4)
    own = SpecPC(draft)
    assert own.compress(["One. Two.", "Three. Four."], "two?", max_tokens=4).draft_tokens > 0
    assert own.calibrate(tasks=6, heads=3) == found
    assert own.ingest(["One. Two."]) > 0


def test_the_fingerprint_knows_weights_not_precision(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.normal_()
    key = fingerprint(model)
    assert fingerprint(tiny_llama()) != key
    assert fingerprint(model.to(torch.bfloat16)) == key
    with torch.device("meta"):
        assert fingerprint(tiny_llama()) is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 99}', '{"format": 1, "heads": []}'])
def test_a_file_that_holds_no_heads(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match="draftapprox calibrate"):
        HeadSet.load(path)


def test_heads_from_a_file_of_the_users(smol: SpecPC, tiny: LoadedModel, tmp_path: Path) -> None:
    packaged = find_heads(smol.draft.model)
    file = packaged.save(str(tmp_path / "heads.json"))
    assert HeadSet.load(str(file)) == packaged
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]
    passages = ["The mill was built in 1821. It is small.", "The bridge was opened in 1932. It is red."]
    expected = smol.compress(passages, "When was the bridge opened?", max_tokens=12)
    found = SpecPC(smol.draft, heads=str(file)).compress(passages, "When was the bridge opened?", max_tokens=12)
    assert [p.text for p in found.passages] == [p.text for p in expected.passages]
    with pytest.raises(InvalidInputError, match="these heads were calibrated on .*the draft is another model"):
        SpecPC(tiny, heads=file)
    beyond = replace(packaged, heads=((99, 0),))
    with pytest.raises(InvalidInputError, match="the draft is another model"):
        SpecPC(smol.draft, heads=beyond)
    with pytest.raises(InvalidInputError, match="is not a file; name one for the heads"):
        packaged.save(tmp_path)


def test_a_broken_file_is_ignored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(tmp_path))
    model = tiny_llama()
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / f"{fingerprint(model)}.json").write_text("{")
    assert find_heads(model) is None
    assert "holds no calibrated heads" in caplog.text


def test_the_embedded_model_comes_calibrated(smol: SpecPC) -> None:
    assert find_heads(smol.draft.model) is not None
    questions = json.loads((DEMO / "questions.json").read_text())[:6]
    texts = {path.name: path.read_text() for path in sorted((DEMO / "docs").iterdir()) if path.suffix == ".md"}
    titles = list(texts)[:6]
    for question in questions:
        if question["document"] in titles:
            result = smol.compress([texts[t] for t in titles], question["question"], keep_ratio=0.1, titles=titles)
            assert any(question["evidence"] in passage.text for passage in result.passages)
    assert result.draft_tokens < 200  # the passages of the last question had been read for the first
