"""Files of every format that the command line reads, written by real libraries; and what is refused."""

import builtins
import csv
import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from pptx.util import Inches

from draftapprox_integrations.cli import terminal
from draftapprox_integrations.cli.documents import read_folder
from draftapprox_integrations.cli.reading import SUFFIXES, read_file
from draftapprox_integrations.errors import InvalidInputError, MissingDependencyError
from tests.helpers.command_line import run_here

PRICES = [("Cheese", "Price", "Aged"), ("Brown", "41", "2 months"), ("Blue", "58", "14 months")]
TABLE = "| Cheese | Price | Aged |\n| --- | --- | --- |\n| Brown | 41 | 2 months |\n| Blue | 58 | 14 months |"


def word_file(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("The Dairy", 1)
    document.add_paragraph("The dairy was founded in 1911.")
    document.add_paragraph("four kinds of cheese", style="List Bullet")
    table = document.add_table(rows=0, cols=3)
    for row in PRICES:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    document.save(str(path))
    return path


def slides(path: Path) -> Path:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[5])
    below = slide.shapes.add_textbox(Inches(1), Inches(5), Inches(4), Inches(1))
    below.text_frame.text = "It is painted red."
    above = slide.shapes.add_textbox(Inches(1), Inches(2), Inches(4), Inches(1))
    above.text_frame.text = "The bridge was opened in 1932."
    slide.shapes.title.text = "The Bridge"
    slide.notes_slide.notes_text_frame.text = "Mention the cyclists."
    slide = show.slides.add_slide(show.slide_layouts[6])
    grid = slide.shapes.add_table(3, 3, Inches(1), Inches(1), Inches(6), Inches(2)).table
    for number, row in enumerate(PRICES):
        for column, text in enumerate(row):
            grid.cell(number, column).text = text
    show.save(str(path))
    return path


def workbook(path: Path) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Prices"
    sheet.append([])
    for row in PRICES:
        sheet.append([None, *row])
    dates = book.create_sheet("Dates")
    dates.append(["Storm", "Day", "Force"])
    dates.append(["Candlemas | 1938", datetime.datetime(1938, 2, 2), 0.1 + 0.2])
    book.create_sheet("Empty")
    book.save(path)
    return path


def book(path: Path) -> Path:
    chapter = "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><head><title>{}</title></head><body>{}</body></html>"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mimetype", "application/epub+zip")
        file.writestr(
            "META-INF/container.xml",
            '<?xml version="1.0"?><container><rootfiles><rootfile full-path="text/book.opf"/></rootfiles></container>',
        )
        file.writestr(
            "text/book.opf",
            '<?xml version="1.0"?><opf:package><opf:manifest><opf:item id="b" href="two%20b.xhtml"/>'
            '<opf:item id="a" href="one.xhtml"/></opf:manifest>'
            '<opf:spine><opf:itemref idref="a"/><opf:itemref idref="b"/></opf:spine></opf:package>',
        )
        file.writestr("text/two b.xhtml", chapter.format("Second", "<p>The storm came.</p>"))
        file.writestr("text/one.xhtml", chapter.format("First", "<h1>Calm</h1><p>The sea was flat.</p>"))
    return path


def test_word(tmp_path: Path) -> None:
    ((title, text),) = read_file(word_file(tmp_path / "dairy.docx"))
    assert title == "The Dairy"
    assert text == f"# The Dairy\n\nThe dairy was founded in 1911.\n\n- four kinds of cheese\n\n{TABLE}"


def test_powerpoint(tmp_path: Path) -> None:
    assert read_file(slides(tmp_path / "town.pptx")) == [
        (
            "town, slide 1",
            "# The Bridge\n\nThe bridge was opened in 1932.\n\nIt is painted red.\n\nMention the cyclists.",
        ),
        ("town, slide 2", TABLE),
    ]


def test_excel(tmp_path: Path) -> None:
    assert read_file(workbook(tmp_path / "data.xlsx")) == [
        ("data, sheet Prices", TABLE),
        (
            "data, sheet Dates",
            "| Storm | Day | Force |\n| --- | --- | --- |\n| Candlemas \\| 1938 | 1938-02-02 | 0.3 |",
        ),
    ]


def test_epub(tmp_path: Path) -> None:
    assert read_file(book(tmp_path / "sea.epub")) == [
        ("sea, First", "# Calm\n\nThe sea was flat."),
        ("sea, Second", "The storm came."),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1251"])
def test_html(tmp_path: Path, encoding: str) -> None:
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in PRICES)
    page = (
        f'<!DOCTYPE html><html><head><meta charset="{encoding}"><title>Мост &amp; river</title>'
        "<style>p {color: red}</style></head><body><script>track()</script><nav>Home</nav><h2>The bridge</h2>"
        f"<p>It was <b>opened</b> in <a href='x'>1932</a>. Мост красный.</p><table>{rows}</table></body></html>"
    )
    (tmp_path / "page.html").write_bytes(page.encode(encoding))
    expected = f"## The bridge\n\nIt was opened in 1932. Мост красный.\n\n{TABLE}"
    assert read_file(tmp_path / "page.html") == [("Мост & river", expected)]


def test_text_formats_are_read_as_they_are(tmp_path: Path) -> None:
    texts = {
        "a.csv": "name,price\nblue,58\n",
        "a.tsv": "name\tprice\nblue\t58\n",
        "a.json": '{"cheese": "blue"}\n',
        "a.jsonl": '{"cheese": "blue"}\n{"cheese": "brown"}\n',
        "a.log": "2024-01-01 ERROR the pump stopped\n",
        "a.ini": "[pump]\npower = 4\n",
        "a.yaml": "pump:\n  power: 4\n",
        "a.xml": "<pump><power>4</power></pump>\n",
        "a.py": "def pump():\n    return 4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "wide.txt").write_text("The b\u00fcrgermeister came.", encoding="utf-16")
    (tmp_path / "ruled.rst").write_text("=====\nStorms\n=====\n\nThree came.\n")
    found = {p.file: p for p in read_folder(tmp_path)}
    assert {name: found[name].text for name in texts} == {name: text.strip() for name, text in texts.items()}
    assert all(found[name].title == name for name in texts)
    assert found["wide.txt"].text == "The b\u00fcrgermeister came."
    assert found["ruled.rst"].title == "Storms"


def cut_rows(path: Path) -> Any:
    return [p.text.splitlines() for p in read_folder(path, 200)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "xlsx", "docx", "html", "md"])
def test_every_passage_of_a_table_begins_with_its_header(tmp_path: Path, suffix: str) -> None:
    header, rows = ["item", "price 2024", "town"], [[f"item {n}", f"{n}.5", "Bergen"] for n in range(40)]
    path = tmp_path / f"prices.{suffix}"
    if suffix in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if suffix == "csv" else "\t").writerows([header, *rows])
    elif suffix == "xlsx":
        book = openpyxl.Workbook()
        for row in [header, *rows]:
            book.active.append(row)
        book.save(path)
    elif suffix == "docx":
        document = docx.Document()
        table = document.add_table(rows=0, cols=3)
        for row in [header, *rows]:
            for cell, text in zip(table.add_row().cells, row, strict=True):
                cell.text = text
        document.save(str(path))
    else:
        lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
        text = "\n".join([lines[0], "|---|---|---|", *lines[1:]])
        if suffix == "html":
            cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in [header, *rows])
            text = f"<p>Our prices.</p><table>{cells}</table>"
        path.write_text(text)
    passages = cut_rows(path)
    assert len(passages) > 4
    if suffix == "html":
        assert passages[0][:2] == ["Our prices.", ""]
        passages[0] = passages[0][2:]
    heads = 1 if suffix in ("csv", "tsv") else 2
    assert all(lines[:heads] == passages[0][:heads] and "price 2024" in lines[0] for lines in passages)
    body = [line for lines in passages for line in lines[heads:]]
    assert [f"item {n}" in line and "Bergen" in line for n, line in enumerate(body)] == [True] * 40


def test_rows_stay_whole(tmp_path: Path) -> None:
    rows = [["name", "note"], *([f"n{n}", f'says "yes",\nthen {n}'] for n in range(20))]
    with (tmp_path / "notes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    read = [list(csv.reader(p.text.splitlines(keepends=True))) for p in read_folder(tmp_path, 150)]
    assert len(read) > 3
    assert [row for rows in read for row in rows[1:]] == rows[1:]
    assert all(rows[0] == ["name", "note"] for rows in read)
    lines = [json.dumps({"number": n, "text": "a. b. c."}) for n in range(20)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    found = [line for p in read_folder(tmp_path / "lines.jsonl", 150) for line in p.text.splitlines()]
    assert found == lines


def test_an_unclosed_quote_does_not_join_all_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('size,note\n6",a\n\n' + "\n".join(f"{n},row" for n in range(100)))
    assert max(len(p.text) for p in read_folder(tmp_path, 150)) < 300


def test_skipped_files_are_named_one_line_per_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.xyz", "b.xyz", "c.XYZ", "d.xyz", "LICENSE", "photo.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "good.txt").write_text("The bridge was opened in 1932.")
    (tmp_path / "late.txt").write_bytes(b"text " * 4000 + b"\0")
    (tmp_path / "packed.txt").write_bytes(bytes(range(128, 256)) * 20)
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "cut.pdf").write_bytes(b"%PDF-1.4 nonsense")
    (tmp_path / "cut.docx").write_bytes(b"nonsense")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "~$good.docx").write_bytes(b"lock")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "index.js").write_text("hidden")
    monkeypatch.setattr(terminal.notes, "_width", 60)
    done = run_here("ingest", tmp_path, "--store", tmp_path / "p.db")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert sorted(lines) == sorted(
        [
            "skipped 4 files: .xyz is not read (a.xyz, b.xyz, c.XYZ, ...)",
            "skipped 1 file: .jpg is not read (photo.jpg)",
            "skipped 1 file: files without a suffix are not read (LICENSE)",
            "skipped 1 file: it is not text: it holds NUL bytes (late.txt)",
            "skipped 1 file: it is not text in UTF-8: most of its bytes cannot be decoded (packed.txt)",
            "skipped 1 file: no text in it (empty.md)",
            "skipped 1 file: it is broken, or encrypted (Stream has ended unexpectedly) (cut.pdf)",
            "skipped 1 file: it is broken, or encrypted (File is not a zip file) (cut.docx)",
        ]
    )
    assert "1 passage" in done.out


@pytest.mark.parametrize("module", ["mammoth", "pptx", "openpyxl", "markdownify"])
def test_a_missing_extra_is_said(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    makers = {"mammoth": word_file, "pptx": slides, "openpyxl": workbook, "markdownify": word_file}
    suffix = {"mammoth": "docx", "pptx": "pptx", "openpyxl": "xlsx", "markdownify": "docx"}[module]
    path = makers[module](tmp_path / f"a.{suffix}")
    (tmp_path / "a.txt").write_text("The bridge was opened in 1932.")
    (tmp_path / "page.html").write_text("<p>One.</p><p>Two.</p><p>Three.</p>")
    real = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name == module:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    found = {p.file: p.text for p in read_folder(tmp_path)}
    assert found["a.txt"]
    assert f"skipped 1 file: .{suffix} needs more packages: pip install" in caplog.text
    assert "draftapprox-integrations[documents]" in caplog.text
    if module == "markdownify":
        assert found["page.html"] == "<p>One.</p><p>Two.</p><p>Three.</p>"
        assert "page.html is read with its tags" in caplog.text
    with pytest.raises(MissingDependencyError, match="documents"):
        read_file(path)


def test_a_single_file_is_read_or_the_error_says_why(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("The bridge was opened in 1932.")
    assert [p.text for p in read_folder(tmp_path / "notes")] == ["The bridge was opened in 1932."]
    (tmp_path / "cut.pdf").write_bytes(b"%PDF-1.4\n" + b"nonsense " * 300)
    with pytest.raises(InvalidInputError, match=r"cannot read .*cut\.pdf: it is broken, or encrypted"):
        read_folder(tmp_path / "cut.pdf")
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(InvalidInputError, match="no text found in"):
        read_folder(tmp_path / "empty.md")
    done = run_here("compress", tmp_path / "cut.pdf", "-q", "When?")
    assert done.code == 1
    assert done.err.count("\n") <= 3
    assert "EOF marker" not in done.err.replace("(EOF marker", "")


def test_large_texts_of_a_folder_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dump.csv").write_text("a,b\n" + "1,2\n" * 100)
    (tmp_path / "small.txt").write_text("Small.")
    monkeypatch.setattr("draftapprox_integrations.cli.documents.MOST_TEXT", 100)
    assert [p.file for p in read_folder(tmp_path)] == ["small.txt"]
    assert "is not read in a folder (dump.csv)" in caplog.text
    assert read_folder(tmp_path / "dump.csv")


def test_suffixes_are_lower_case_and_distinct() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert len(set(SUFFIXES)) == len(SUFFIXES)
