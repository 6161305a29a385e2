"""The command line: evaluation, with a tiny model; what is measured is tested in integration/evaluation."""

import json
from pathlib import Path

import pytest

from draftapprox_integrations import LoadedModel
from tests.helpers.command_line import run_here

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def folder(tiny: LoadedModel, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny.model.save_pretrained(path)
    tiny.require_tokenizer().save_pretrained(path)
    return path


def test_methods_are_compared_once_logged_and_plotted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "out"
    models = ("--target", folder, "--draft", folder, "--out", out)
    task = ("--task", "niah_single_1", "--length", 400, "--samples", 2)
    done = run_here("eval", "full", "speckvpc:100:64", *models, *task, "--log", "tensorboard", "--page")
    assert done.code == 0, done.err
    assert "speckvpc 64" in done.out
    assert "niah_single_1_400" in done.out
    assert "| task | full | speckvpc 64 |" in (out / "results.md").read_text()
    assert len(list(out.glob("tensorboard/*/events*"))) == 2
    files = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert len(files) == 2
    done = run_here("eval", "full", *models, *task, "--log", "wandb")
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == files
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    config = tmp_path / "runs.yaml"
    config.write_text(f"target: {folder}\ndraft: {folder}\nmethod: snapkv\nbudgets: [64]\ntasks: [niah_single_1]\n")
    done = run_here("eval", "--config", config, "--length", 400, "--samples", 2, "--out", out)
    assert done.code == 0, done.err
    assert "snapkv 64" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a method, such as full or speckv:256"),
        (("h2o:5",), "method must be one of full, snapkv"),
        (("speckv:many",), "a method is given as speckv:256"),
        (("full", "--task", "qa_1", "--ruler-data", "."), "qa_1 needs squad.json"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], message: str, folder: Path, tmp_path: Path) -> None:
    done = run_here("eval", *arguments, "--target", folder, "--out", tmp_path / "out")
    assert done.code == 1
    assert message in " ".join(done.err.split())


def test_passages_are_compared(folder: Path, tmp_path: Path) -> None:
    row = {
        "question": "When was the mill built?",
        "passages": ["The mill is old. It was built in 1821.", "The bridge is red. It is from 1932."],
        "evidence": ["It was built in 1821."],
        "answer": "1821",
    }
    data, out = tmp_path / "mine.jsonl", tmp_path / "new" / "rag.jsonl"
    data.write_text("\n".join([json.dumps(row)] * 3))
    arguments = ("--data", data, "--target", folder, "--draft", "default", "--max-tokens", 12, "--out", out)
    done = run_here("eval-rag", *arguments, "--max-new-tokens", 2, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [(row["way"], row["budget"], row["tasks"]) for row in rows] == [
        ("full", None, 3), ("specpc", 12, 3), ("bm25", 12, 3), ("first", 12, 3)
    ]  # fmt: skip
    assert rows[0]["evidence"] == 1
    assert len(out.read_text().splitlines()) == 12
    done = run_here("eval-rag", *arguments, "--max-new-tokens", 2)
    assert done.code == 0, done.err
    assert "likelihood" in done.out
    assert len(out.read_text().splitlines()) == 12


def test_estimates_before_a_gpu_is_rented(folder: Path) -> None:
    done = run_here("advise", "--target", folder, "--draft", folder, "--context", 4096, "--gpu", "l4", "--speckv", 256)
    assert done.code == 0, done.err
    assert "speckvpc 2048 256" in " ".join(done.out.split())
    assert "not measurements" in " ".join(done.err.split())
    done = run_here("advise", "--target", folder, "--draft", folder, "--context", 4096, "--gpu", "abacus")
    assert done.code == 1
    assert "--gpu must be one of H200" in done.err


def test_the_harness_own_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here("lm-eval", "--help").code == 0
