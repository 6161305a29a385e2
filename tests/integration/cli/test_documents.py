import json
import os
from pathlib import Path
from typing import Any

import pytest

from draftapprox_integrations import SpecPC
from draftapprox_integrations.cli.documents import read_folder, search
from draftapprox_integrations.cli.reading import read_file
from draftapprox_integrations.cli.splitting import split
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import DEMO

QUESTIONS = json.loads((DEMO / "questions.json").read_text())


def squeezed(text: Any) -> Any:
    return " ".join(text.split())


def test_the_demo_is_large_enough_to_need_compression(smol: SpecPC) -> None:
    passages = read_folder(DEMO / "docs")
    assert {p.file.rsplit(".", 1)[1] for p in passages} == {"md", "txt", "pdf"}
    whole = smol.compress([p.text for p in passages], "How large is it?", keep_ratio=1)
    assert whole.tokens_before > 8_000


@pytest.mark.parametrize("item", QUESTIONS, ids=lambda item: item["document"])
def test_each_demo_question_has_its_evidence_retrieved(item: Any) -> None:
    found = search(read_folder(DEMO / "docs"), item["question"], 12)
    assert any(item["evidence"] in squeezed(p.text) and p.file == item["document"] for p in found)
    assert all(any(answer in squeezed(p.text) for p in found) for answer in item["answers"][:1])


def without_repeated_headers(piece: str, text: str) -> str:
    while piece not in text:
        header, piece = piece.split("\n", 1)
        assert f"{header}\n" in text
    return piece


@pytest.mark.parametrize("path", sorted((DEMO / "docs").iterdir()), ids=lambda p: p.name)
def test_splitting_loses_no_word(path: Any) -> None:
    for _, text in read_file(path):
        pieces = split(text, 500)
        assert " ".join(without_repeated_headers(piece, text) for piece in pieces).split() == text.split()
        assert all(len(piece) < 1200 for piece in pieces)


def test_a_heading_goes_with_its_text() -> None:
    text = "# A\n\nFirst part here.\n\n## B\n\nSecond part here, a little longer.\n"
    assert split(text, 40) == ["# A\n\nFirst part here.", "## B\n\nSecond part here, a little longer."]


def test_odd_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02")
    (tmp_path / "latin.txt").write_bytes("Caf\u00e9 am Meer.".encode("latin-1"))
    (tmp_path / "bom.md").write_bytes("\ufeff# Title\n\nText.".encode())
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nonsense")
    (tmp_path / "ignored.bin").write_bytes(b"x")
    passages = read_folder(tmp_path)
    assert {(p.file, p.title) for p in passages} == {("latin.txt", "Caf\ufffd am Meer."), ("bom.md", "Title")}
    assert "it holds NUL bytes (binary.txt)" in caplog.text
    assert "it is broken, or encrypted" in caplog.text
    assert ".bin is not read (ignored.bin)" in caplog.text
    for name in ("binary.txt", "missing.txt"):
        with pytest.raises(InvalidInputError):
            read_file(tmp_path / name)
    with pytest.raises(InvalidInputError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InvalidInputError, match="no text found"):
        read_folder(tmp_path / "sub")


def test_other_encodings_and_closed_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latin.txt").write_bytes("Das Café öffnet um acht.".encode("latin-1"))
    (tmp_path / "closed").mkdir()

    def walk(folder: Any, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "closed")))  # root is never refused
        return real(folder)

    real = os.walk
    monkeypatch.setattr(os, "walk", walk)
    (found,) = read_folder(tmp_path)
    assert found.text == "Das Caf\ufffd \ufffdffnet um acht."
    assert "latin.txt is not UTF-8" in caplog.text
    assert f"skipped: cannot read {tmp_path / 'closed'}: Permission denied" in caplog.text


def test_a_single_file_and_more_passages_asked_for_than_there_are() -> None:
    passages = read_folder(DEMO / "docs" / "three-storms.md")
    assert len(search(passages, "storm", 1000)) == len(passages)
    assert search(passages, "\u6a4b?!", 2)  # no word in common is no error
