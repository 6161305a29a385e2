"""Word, PowerPoint, Excel, EPUB and HTML files as Markdown, so that headings, lists and tables stay what they are.

Needs the extra `documents`: mammoth (Word), python-pptx, openpyxl, markdownify and Beautiful Soup (HTML). Each reader
takes a file and returns (title, text) pairs, the title relative to the document's: None, or a part's name.
"""

from __future__ import annotations

import datetime
import posixpath
import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

Parts = list[tuple[str | None, str]]

# Text of these elements is not for readers.
_HIDDEN = ("script", "style", "template", "noscript", "svg", "head", "nav")
_MOST_MEMBER = 64 << 20  # bytes of one file in an EPUB, unpacked


def read_html(data: bytes | str) -> tuple[str | None, str]:
    """Return the page's title, None without one, and its text as Markdown.

    Args:
        data: The page; bytes are decoded as they, or else the page, say.
    """
    from bs4.element import Declaration, ProcessingInstruction
    from markdownify import MarkdownConverter

    soup = _parsed(data)
    for note in soup.find_all(string=lambda text: isinstance(text, Declaration | ProcessingInstruction)):
        note.extract()
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup(_HIDDEN):
        element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        table_infer_header=True,
        strip=["a", "img", "b", "strong", "i", "em"],  # marks that cost tokens and say nothing
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )
    return title or None, converter.convert_soup(soup).strip()


def _parsed(data: bytes | str) -> BeautifulSoup:
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # XHTML that is read as HTML, text that looks like a file's name
        return BeautifulSoup(data, "html.parser")


def read_docx(path: Path) -> Parts:
    """Return the document as one part."""
    import mammoth

    with path.open("rb") as file:
        html = mammoth.convert_to_html(file).value
    return [(None, read_html(html)[1])]


def read_pptx(path: Path) -> Parts:
    """Return a part per slide: its texts and tables from top to bottom, then its notes."""
    from pptx import Presentation

    parts: Parts = []
    for number, slide in enumerate(Presentation(str(path)).slides, 1):
        texts = list(_texts_of(slide.shapes, slide.shapes.title))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(slide.notes_slide.notes_text_frame.text)
        parts.append((f"slide {number}", "\n\n".join(text for text in texts if text.strip())))
    return parts


def _texts_of(shapes: Any, title: Any) -> Iterable[str]:
    # Shapes are stored in the order they were drawn; people read from top to bottom.
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if title is not None and shape.shape_id == title.shape_id:
            yield f"# {' '.join(shape.text_frame.text.split())}" if shape.text_frame.text.strip() else ""
        elif shape.has_text_frame:
            yield "\n".join(paragraph.text for paragraph in shape.text_frame.paragraphs)
        elif getattr(shape, "has_table", False):
            yield _table([[cell.text for cell in row.cells] for row in shape.table.rows])
        elif hasattr(shape, "shapes"):  # a group
            yield from _texts_of(shape.shapes, title)


def read_xlsx(path: Path) -> Parts:
    """Return a part per sheet: a table whose header is the first row that is not empty."""
    from openpyxl import load_workbook

    workbook = load_workbook(path, read_only=True, data_only=True)
    try:
        parts: Parts = []
        for sheet in workbook.worksheets:
            rows = [[_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
            parts.append((f"sheet {sheet.title}", _table(rows)))
        return parts
    finally:
        workbook.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    if isinstance(value, float):
        return f"{value:.12g}"  # 0.1 + 0.2 as people see it
    return str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows as Markdown, without empty rows and columns."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    width = max(map(len, cells), default=0)
    used = [column for column in range(width) if any(column < len(row) and row[column] for row in cells)]
    lines = ["| " + " | ".join(row[column] if column < len(row) else "" for column in used) + " |" for row in cells]
    rule = "|" + " --- |" * len(used)
    return "\n".join([*lines[:1], rule, *lines[1:]]) if lines else ""


def read_epub(path: Path) -> Parts:
    """Return a part per chapter, in reading order, with the chapter's title.

    Raises:
        ValueError: the file has no table of contents, or a chapter is larger than 64 MiB.
    """
    with zipfile.ZipFile(path) as book:
        container = _parsed(_member(book, "META-INF/container.xml"))
        root = container.find("rootfile")
        if root is None:
            raise ValueError("it names no contents")
        contents = str(root["full-path"])
        package = _parsed(_member(book, contents))
        # Names may have a prefix: opf:item.
        items = package.find_all(re.compile(r"(?:^|:)item$"))
        files = {str(item.get("id")): str(item.get("href")) for item in items}
        parts: Parts = []
        for number, reference in enumerate(package.find_all(re.compile(r"(?:^|:)itemref$")), 1):
            name = files.get(str(reference.get("idref")))
            if name is not None:
                member = posixpath.normpath(posixpath.join(posixpath.dirname(contents), unquote(name)))
                title, text = read_html(_member(book, member))
                parts.append((title or f"part {number}", text))
    return parts


def _member(book: zipfile.ZipFile, name: str) -> bytes:
    if book.getinfo(name).file_size > _MOST_MEMBER:
        raise ValueError(f"{name} in it is larger than {_MOST_MEMBER >> 20} MiB")
    return book.read(name)
