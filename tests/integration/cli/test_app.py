"""The command line: `ask` and `compress`, with their standard streams and exit codes."""

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.helpers.command_line import run_here, run_process

pytestmark = pytest.mark.usefixtures("embedded_model")  # loaded once, not by each command

QUESTION = "On what date did the Candlemas Storm come?"


def test_ask_answers_and_shows_what_was_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run_here(
        "ask", QUESTION, "Who founded the museum in 1952?", "--docs", DEMO / "docs", "--top-k", 2,
        "--max-tokens", 100, "--max-new-tokens", 16, "--compare", "--html", page,
    )  # fmt: skip
    out = done.out
    assert done.code == 0, done.err
    kept, answer = out.split("answer", 1)
    assert "2 February 1938" in " ".join(kept.replace("\u2502", " ").split())
    assert "characters dropped ...]" in kept
    assert answer.strip(" \u2500\u256e\u2502\n")
    assert "Ingrid Falkner" in out
    for shown in ("Retrieved 2 of", "BM25", "Kept", "of", "tokens", "answer from the full context", "prompt tokens"):
        assert shown in out
    assert "Candlemas" in page.read_text()
    assert "museum" in (tmp_path / "page-2.html").read_text()
    assert "Traceback" not in done.err


def test_ask_with_fewer_kv_pairs() -> None:
    done = run_here(
        "ask", QUESTION, "--docs", DEMO / "docs", "--top-k", 3, "--method", "speckv", "--kv", 64, "--compare"
    )
    out = done.out
    assert done.code == 0, done.err
    kept = next(line.split() for line in out.splitlines() if line.startswith("KV pairs kept per head"))
    assert kept[-2] == "64"
    assert int(kept[-1].replace(",", "")) > 300
    for step in ("lookahead", "prefill", "decode"):
        assert step in out
    done = run_here("ask", QUESTION, "--docs", DEMO / "docs", "--method", "full", "--keep-ratio", 0.5)
    assert done.code == 1
    assert "--method full does not" in done.message


def test_ask_json_is_one_object_per_line_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run_here(
        "ask", QUESTION, "Who founded the museum in 1952?", "--docs", DEMO / "docs", "--top-k", 2,
        "--max-tokens", 100, "--max-new-tokens", 12, "--compare", "--json", "--html", page,
    )  # fmt: skip
    assert done.code == 0, done.err
    first, second = map(json.loads, done.out.splitlines())
    assert [first["question"], second["question"]] == [QUESTION, "Who founded the museum in 1952?"]
    assert first["retrieved"] == 2
    assert (first["draft"], first["model"], first["method"]) == (*["SmolLM2-135M-Instruct"] * 2, "specpc")
    assert 0 < len(first["passages"]) <= 2
    assert any("2 February 1938" in passage["text"] for passage in first["passages"])
    for passage in first["passages"]:
        assert passage["text"] == "\n".join(passage["original"][a:b] for a, b in passage["kept"])
        assert (DEMO / "docs" / passage["file"]).is_file()
        assert passage["title"]
        assert passage["number"] >= 1
    assert sum(passage["tokens_after"] for passage in first["passages"]) == first["tokens_after"] <= first["budget"]
    assert first["tokens_before"] > first["tokens_after"]
    assert first["full"]["prompt_tokens"] > first["prompt_tokens"] > first["completion_tokens"] > 0
    assert first["answer"]
    assert first["finish_reason"] in ("stop", "length")
    assert set(first["timings"]) == {"search", "compress", "answer"}
    assert first["timings"]["compress"]["total"] > 0 < first["timings"]["answer"]["total"]
    html = page.read_text()  # the report has the answers, and where each passage comes from
    for shown in (first["answer"], first["full"]["answer"], *(passage["file"] for passage in first["passages"])):
        assert escape(shown) in html
    assert f"Heat map: {page}" in done.err.replace("\n", "")


@pytest.mark.parametrize("command", ["ask", "compress", "ingest", "calibrate"])
def test_help_shows_the_default_of_each_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setenv(setting, "300")
    done = run_here(command, "--help")
    options = [
        line for line in done.out.splitlines() if line.startswith("\u2502") and " --" in line and "--help" not in line
    ]
    assert len(options) >= 3
    for line in options:
        assert ("[default: " in line) != ("[required]" in line), line


def test_compress_stdin_to_text() -> None:
    text = (DEMO / "docs" / "three-storms.md").read_bytes()[:2000]
    done = run_process("compress", "-q", QUESTION, "--max-tokens", 60, stdin=text)
    assert done.code == 0, done.err
    assert "2 February 1938" in done.out
    assert len(done.out) < 0.3 * len(text)
    assert "tokens" in done.err


def test_compress_files_to_json() -> None:
    files = [DEMO / "docs" / "three-storms.md", DEMO / "docs" / "rescue-service-report.pdf"]
    done = run_here("compress", *files, "-q", QUESTION, "--keep-ratio", 0.05, "--json", "--granularity", "word")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["titles"][0].startswith("Three Storms")
    assert result["tokens_after"] <= result["budget"] < 0.06 * result["tokens_before"]
    assert result["draft"] == "SmolLM2-135M-Instruct"


def test_compress_by_recall_and_relevance() -> None:
    text = b"The old mill was built in 1821. It is small.\n\nThe bridge was opened in 1932. It is red and long."
    question = ["compress", "-q", "In which year was the bridge opened?"]
    some = run_here(*question, "--recall", 0.3, stdin=text)
    assert some.code == 0, some.err
    assert some.out.strip() == "The bridge was opened in 1932."
    nothing = run_here(*question, "--min-relevance", 1, stdin=text)
    assert nothing.code == 0, nothing.err
    assert nothing.out.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["ask", "why?", "--docs", "/nowhere"], b"", "there is no folder '/nowhere'"),
        (["ask", "  ", "--docs", DEMO / "docs"], b"", "query must be a non-empty string"),
        (["ask", "why?", "--docs", DEMO / "docs", "--keep-ratio", 3], b"", "keep_ratio must be in (0, 1]; got 3.0"),
        (["compress", "-q", " ", "--max-tokens", 5], b"text", "query must be a non-empty string"),
        (["compress", "-q", "why?", "--html", "/nowhere/x.html"], b"text", "cannot write /nowhere/x.html"),
        (["compress", "-q", "why?", "/nowhere.txt"], b"", "cannot read /nowhere.txt"),
        (["compress", "-q", "why?"], b"\x00\x01", "cannot read standard input: it is not text"),
        (["compress", "-q", "why?", "--draft", "/nowhere"], b"text", "there is no file or folder '/nowhere'"),
        (["compress", "-q", "why?", "--max-tokens", 0], b"text", "max_tokens must be an integer >= 1; got 0"),
        (["compress", "-q", "why?", "--recall", 0], b"text", "recall must be in (0, 1]; got 0.0"),
    ],
)
def test_errors_are_one_line_and_exit_1(arguments: Any, stdin: bytes, message: str) -> None:
    done = run_here(*arguments, stdin=stdin)
    assert done.code == 1
    assert message in done.message
    assert "Traceback" not in done.err
    assert done.out == ""


def test_empty_input_is_no_error() -> None:
    done = run_here("compress", "-q", "why?", stdin=b"")
    assert done.code == 0, done.err
    assert done.out.strip() == ""
