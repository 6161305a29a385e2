"""Read files of many formats as text: what `ask`, `ingest` and `compress` take.

Text formats are read as they are, PDF with pypdf, the others by `office` with the extra `documents`. In a LangChain or
LlamaIndex pipeline, use their loaders instead.
"""

from __future__ import annotations

import codecs
import logging
import re
from pathlib import Path

from ..errors import InvalidInputError, MissingDependencyError

_PROSE = (".md", ".markdown", ".txt", ".text", ".rst")
_DATA = (
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".ndjson",
    ".yaml",
    ".yml",
    ".xml",
    ".toml",
    ".ini",
    ".cfg",
    ".conf",
    ".log",
)
_CODE = (
    ".py", ".js", ".ts", ".jsx", ".tsx", ".java", ".kt", ".c", ".h", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php",
    ".swift", ".scala", ".r", ".sh", ".sql", ".tex", ".org", ".adoc",
)  # fmt: skip
_HTML = (".html", ".htm", ".xhtml")
_OFFICE = (".docx", ".pptx", ".xlsx", ".epub")
TEXT_SUFFIXES = (*_PROSE, *_DATA, *_CODE, *_HTML)
SUFFIXES = (*TEXT_SUFFIXES, ".pdf", *_OFFICE)
KINDS = "text (.md, .txt, .rst, .csv, .json, .html, .log, code ...), .pdf, .docx, .pptx, .xlsx and .epub"

DOCUMENTS_EXTRA = 'pip install "draftapprox-integrations[documents]"'

_HEAD = 1 << 16  # bytes that decide whether a file is text
_UNREADABLE_SHARE = 0.3  # of the characters: more is another encoding, or no text
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd]")

logger = logging.getLogger(__name__)


class UnreadableFileError(Exception):
    """A file that is not read; its text is the reason, without the file's name."""


def read_file(path: Path) -> list[tuple[str, str]]:
    """Read a document.

    Args:
        path: The file. A suffix that is not in `SUFFIXES` is read as text.

    Returns:
        (title, text) pairs that are not blank: one for most files; one per page of a PDF, slide of a presentation,
        sheet of a workbook and chapter of a book. Tables and headings of documents are Markdown.

    Raises:
        InvalidInputError: the file does not exist, cannot be read, or is not text.
        MissingDependencyError: a package that reads the format is not installed.
    """
    try:
        return read_parts(path)
    except UnreadableFileError as error:
        kind = MissingDependencyError if isinstance(error.__cause__, ImportError) else InvalidInputError
        raise kind(f"cannot read {path}: {error}") from error


def read_parts(path: Path) -> list[tuple[str, str]]:
    """As `read_file`, for callers that group files by what is wrong with them.

    Raises:
        UnreadableFileError: with the reason. Its cause is an ImportError where a package is missing.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".pdf":
            parts = _read_pdf(path)
        elif suffix in _OFFICE:
            parts = _read_office(path, suffix)
        elif suffix in _HTML:
            parts = _read_html(path)
        else:
            text = decode(path.read_bytes(), str(path))
            parts = [(_title(text, path), text)]
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error
    return [(title, text) for title, text in parts if text.strip()]


def decode(data: bytes, name: str) -> str:
    """Decode text: UTF-8, or UTF-16 with a byte order mark; warn of bytes that are neither.

    Args:
        data: The bytes.
        name: What they are, for the warning.

    Raises:
        UnreadableFileError: it is not text: NUL bytes, or mostly bytes that cannot be decoded.
    """
    if _is_utf16(data):
        return data.decode("utf-16", errors="replace")
    _refuse_nul(data)
    head = data[:_HEAD].decode("utf-8", errors="replace")
    if len(_CONTROL.findall(head)) > _UNREADABLE_SHARE * len(head):
        raise UnreadableFileError("it is not text in UTF-8: most of its bytes cannot be decoded")
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text and "\ufffd".encode() not in data:
        logger.warning("%s is not UTF-8: bytes that could not be decoded are shown as \ufffd", name)
    return text


def _is_utf16(data: bytes) -> bool:
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return marked and not data.startswith(codecs.BOM_UTF32_LE)


def _refuse_nul(data: bytes) -> None:
    if b"\0" in data[:_HEAD] and not _is_utf16(data):
        raise UnreadableFileError("it is not text: it holds NUL bytes")


def _read_pdf(path: Path) -> list[tuple[str, str]]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise UnreadableFileError('it needs pypdf: pip install "draftapprox-integrations[cli]"') from error
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs details of the format that no user can act on
    try:
        with PdfReader(path) as reader:
            title = (reader.metadata.title if reader.metadata else None) or path.stem
            return [(f"{title}, page {number}", page.extract_text()) for number, page in enumerate(reader.pages, 1)]
    except OSError:
        raise
    except Exception as error:  # pypdf lets errors of any type through: broken or encrypted files, missing packages
        raise UnreadableFileError(f"it is broken, or encrypted ({_one_line(error)})") from error


def _read_office(path: Path, suffix: str) -> list[tuple[str, str]]:
    from . import office

    reader = {
        ".docx": office.read_docx,
        ".pptx": office.read_pptx,
        ".xlsx": office.read_xlsx,
        ".epub": office.read_epub,
    }[suffix]
    try:
        parts = reader(path)
    except ImportError as error:
        raise UnreadableFileError(f"{suffix} needs more packages: {DOCUMENTS_EXTRA}") from error
    except OSError:
        raise
    except Exception as error:  # as pypdf, these libraries let errors of any type through
        raise UnreadableFileError(f"it is broken, or encrypted ({_one_line(error)})") from error
    if len(parts) == 1 and parts[0][0] is None:
        return [(_title(parts[0][1], path), parts[0][1])]
    return [(f"{path.stem}, {name}" if name else path.stem, text) for name, text in parts]


def _read_html(path: Path) -> list[tuple[str, str]]:
    from .office import read_html

    data = path.read_bytes()
    _refuse_nul(data)
    try:
        title, shown = read_html(data)  # pages say their encoding
    except ImportError:  # tags are text, too; the splitter knows them
        logger.warning("%s is read with its tags; to read it as a browser shows it: %s", path, DOCUMENTS_EXTRA)
        return [(path.stem, decode(data, str(path)))]
    return [(title or path.stem, shown)]


def _title(text: str, path: Path) -> str:
    """Return the first line of prose, if it can be a title; else the file's name."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and suffix not in _PROSE and suffix != ".docx":
        return path.name  # the first line of data or code says nothing
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if any(letter.isalnum() for letter in line)), "")
    if suffix in (".md", ".markdown", ".docx") and not first.startswith("#"):
        return path.stem
    first = first.lstrip("# ").strip()
    return first if 0 < len(first) <= 100 else path.stem


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
