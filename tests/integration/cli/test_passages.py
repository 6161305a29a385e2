"""The command line: calibrating a draft and reading a folder ahead."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import DEMO, tiny_llama
from tests.helpers.command_line import run_here, run_process


def test_ingest_then_ask(tmp_path: Path) -> None:
    store = tmp_path / "p.db"
    pages = DEMO / "docs" / "three-storms.md"
    done = run_process("ingest", pages, "--store", store)
    assert done.code == 0, done.err
    assert "tokens read in" in " ".join(done.out.split())
    assert store.exists()
    assert "0 tokens read" in run_here("ingest", pages, "--store", store).out
    question = "On what date did the Candlemas Storm come?"
    done = run_process("compress", pages, "-q", question, "--max-tokens", 60, "--store", store, "--json")
    assert done.code == 0, done.err
    assert "2 February 1938" in json.loads(done.out)["passages"][0]["text"]
    assert "passages" in run_here("store", "stats", store).out
    assert "0 remain" in run_here("store", "prune", store, "--max-mb", 0).out


def test_calibrate_writes_heads_that_are_found(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "draft", tmp_path / "cache"
    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(cache))
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    done = run_process("calibrate", "--model", folder, "--tasks", 6, "--heads", 2)
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
    done = run_process("ingest", DEMO / "docs", "--store", tmp_path / "p.db", "--draft", folder)
    assert done.code == 1
    assert "draftapprox calibrate --model" in done.message
    assert "Traceback" not in done.err
