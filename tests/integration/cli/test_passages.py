"""The command line: calibrating a draft and reading a folder ahead."""

import io
import json
import os
import pty
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations.cli import terminal
from draftapprox_integrations.cli.app import app
from tests.conftest import DEMO, tiny_llama
from tests.helpers.command_line import run_here

pytestmark = pytest.mark.usefixtures("embedded_model")  # loaded once, not by each command


def test_ingest_then_ask(tmp_path: Path) -> None:
    store = tmp_path / "p.db"
    pages = DEMO / "docs" / "three-storms.md"
    done = run_here("ingest", pages, "--store", store)
    assert done.code == 0, done.err
    assert "tokens read in" in " ".join(done.out.split())
    assert store.exists()
    assert "0 tokens read" in run_here("ingest", pages, "--store", store).out
    question = "On what date did the Candlemas Storm come?"
    done = run_here("compress", pages, "-q", question, "--max-tokens", 60, "--store", store, "--json")
    assert done.code == 0, done.err
    assert "2 February 1938" in json.loads(done.out)["passages"][0]["text"]
    assert "passages" in run_here("store", "stats", store).out
    assert "0 remain" in run_here("store", "prune", store, "--max-mb", 0).out


def test_repeated_passages_are_said(tmp_path: Path) -> None:
    text = "The bridge was opened in 1932. It is painted red."
    for name in ("a.csv", "b/a.csv", "c/a.csv"):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "docs" / "other.csv").write_text("The mill was built in 1821.")
    out = run_here("ingest", tmp_path / "docs", "--store", tmp_path / "p.db").out
    assert "4 passages (2 of them repeat others and are stored once)" in out
    assert "p.db: 2 passages" in out
    out = run_here("ingest", tmp_path / "docs" / "b", "--store", tmp_path / "p.db").out
    assert "1 passage, 0 tokens read" in out


def test_a_progress_bar_on_a_terminal_and_nothing_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = DEMO / "docs" / "three-storms.md"
    assert run_here("ingest", pages, "--store", tmp_path / "piped.db").err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal.notes, "is_interactive", True)  # found once, as a process starts
    ours, theirs = pty.openpty()
    shown = bytearray()

    def watch() -> None:
        with suppress(OSError):  # Linux says so when the other end is closed
            while piece := os.read(ours, 1 << 16):
                shown.extend(piece)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out = io.StringIO()
    with os.fdopen(theirs, "w") as screen, redirect_stderr(screen), redirect_stdout(out):
        app(["ingest", str(pages), "--store", str(tmp_path / "p.db")], standalone_mode=False)
    watcher.join()
    os.close(ours)
    assert "tokens read in" in out.getvalue()
    assert "Reading" not in out.getvalue()
    assert b"Reading" in shown
    passages = out.getvalue().split()[0].encode()
    assert passages + b"/" + passages in shown


def test_calibrate_writes_heads_that_are_found(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "draft", tmp_path / "cache"
    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(cache))
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    done = run_here("calibrate", "--model", folder, "--tasks", 6, "--heads", 2)
    assert done.code == 0, done.err
    assert "mean reciprocal rank" in " ".join(done.out.split())
    assert len(list((cache / "heads").glob("*.json"))) == 1
    done = run_here("calibrate", "--model", folder, "--tasks", 6, "--out", tmp_path)
    assert done.code == 1
    assert "is not a file; name one for the heads" in done.message
    done = run_here("ingest", DEMO / "docs" / "three-storms.md", "--store", tmp_path / "p.db", "--draft", folder)
    assert done.code == 0, done.err


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    done = run_here("store", "stats", tmp_path / "none.db")
    assert done.code == 1
    assert "there is no store" in done.message
    folder = tmp_path / "draft"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    done = run_here("ingest", DEMO / "docs", "--store", tmp_path / "p.db", "--draft", folder)
    assert done.code == 1
    assert "draftapprox calibrate --model" in done.message
