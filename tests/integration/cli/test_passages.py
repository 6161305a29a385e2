"""Calibrating a draft and reading a folder ahead, as users do: processes and their output."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.conftest import DEMO, tiny_llama

DRAFTAPPROX = Path(sys.executable).parent / "draftapprox"


def run(*arguments: Any, **environment: Any) -> Any:
    done = subprocess.run(
        [DRAFTAPPROX, *map(str, arguments)], capture_output=True, timeout=300, env=os.environ | environment, text=True
    )
    return done.returncode, " ".join(done.stdout.split()), " ".join(done.stderr.split())


def test_ingest_then_ask(tmp_path: Path) -> None:
    store = tmp_path / "p.db"
    code, out, err = run("ingest", DEMO / "docs" / "three-storms.md", "--store", store)
    assert code == 0, err
    assert "tokens read in" in out
    assert store.exists()
    code, again, err = run("ingest", DEMO / "docs" / "three-storms.md", "--store", store)
    assert "0 tokens read" in again
    question = "On what date did the Candlemas Storm come?"
    code, out, err = run(
        "compress", DEMO / "docs" / "three-storms.md", "-q", question, "--max-tokens", 60, "--store", store, "--json"
    )
    assert code == 0, err
    assert "2 February 1938" in json.loads(out)["passages"][0]["text"]
    code, out, _ = run("store", "stats", store)
    assert "passages" in out
    code, out, _ = run("store", "prune", store, "--max-mb", 0)
    assert "0 remain" in out


def test_calibrate_writes_heads_that_are_found(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    folder, cache = tmp_path / "draft", tmp_path / "cache"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    here: dict[str, Any] = {"DRAFTAPPROX_CACHE": str(cache)}
    code, out, err = run("calibrate", "--model", folder, "--tasks", 6, "--heads", 2, **here)
    assert code == 0, err
    assert "mean reciprocal rank" in out
    assert len(list((cache / "heads").glob("*.json"))) == 1
    code, out, err = run("calibrate", "--model", folder, "--tasks", 6, "--out", tmp_path, **here)
    assert code == 1
    assert "is not a file; name one for the heads" in err
    code, out, err = run(
        "ingest", DEMO / "docs" / "three-storms.md", "--store", tmp_path / "p.db", "--draft", folder, **here
    )
    assert code == 0, err


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    code, _, err = run("store", "stats", tmp_path / "none.db")
    assert code == 1
    assert "there is no store" in err
    folder = tmp_path / "draft"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    code, _, err = run("ingest", DEMO / "docs", "--store", tmp_path / "p.db", "--draft", folder)
    assert code == 1
    assert "draftapprox calibrate --model" in err
    assert "Traceback" not in err
