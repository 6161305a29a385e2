"""Documents for the command line: read files, split them into passages, search the passages.

pypdf reads PDF files, BM25 ranks. In a LangChain or LlamaIndex pipeline, use their loaders and retrievers instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError, MissingDependencyError
from ..specpc.scoring.bm25 import BM25Index
from ..specpc.text.segmentation import sentences

SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst", ".pdf")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of a document.

    Attributes:
        text: Text of the passage.
        title: Title of the document; for a PDF, with the page number.
        file: Name of the document's file.
    """

    text: str
    title: str
    file: str


def read_file(path: Path) -> list[tuple[str, str]]:
    """Read a document into (title, text) pairs: one for a text file, one per non-empty page for a PDF.

    Raises:
        InvalidInputError: the file does not exist, cannot be read, or is not text.
        MissingDependencyError: the file is a PDF and pypdf is not installed.
    """
    try:
        if path.suffix.lower() == ".pdf":
            return _read_pdf(path)
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error
    if b"\0" in data[:4096]:
        raise InvalidInputError(f"{path} is not a text file: it holds NUL bytes. Give text (UTF-8) or .pdf files.")
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text and "\ufffd".encode() not in data:
        logger.warning("%s is not UTF-8: bytes that could not be decoded are shown as \ufffd", path)
    return [(_title(text, path), text)]


def read_folder(folder: Path, max_characters: int = 1000) -> list[Passage]:
    """Read all documents under `folder` and split them into passages; skip unreadable files with a warning.

    Args:
        folder: Folder that is searched, with its subfolders, for the suffixes in `SUFFIXES`; or a single file of any
            suffix.
        max_characters: Approximate maximum number of characters of a passage; sentences stay whole.

    Raises:
        InvalidInputError: the folder does not exist or contains no text.
    """
    if not folder.exists():
        raise InvalidInputError(f"there is no folder {str(folder)!r}")
    files = [folder] if folder.is_file() else sorted(_documents_under(folder))
    passages = []
    for file in files:
        try:
            parts = read_file(file)
        except InvalidInputError as error:
            logger.warning("skipped: %s", error)
            continue
        passages += [Passage(piece, title, file.name) for title, text in parts for piece in split(text, max_characters)]
    if not passages:
        raise InvalidInputError(f"no text found under {str(folder)!r}; it looks for {', '.join(SUFFIXES)}")
    return passages


def _documents_under(folder: Path) -> Iterator[Path]:
    def warn(error: OSError) -> None:
        logger.warning("skipped: cannot read %s: %s", error.filename, error.strerror or error)

    for parent, _, names in os.walk(folder, onerror=warn):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in SUFFIXES)


def split(text: str, max_characters: int) -> list[str]:
    """Split text into runs of whole sentences of about `max_characters`; keep headings with the text that follows."""
    pieces: list[str] = []
    start = end = None
    for unit_start, unit_end in sentences(text):
        heading = text[unit_start:unit_end].startswith("#")
        full = start is not None and unit_end - start > max_characters
        late_heading = start is not None and heading and unit_start - start > max_characters // 2
        if start is not None and (full or late_heading):
            pieces.append(text[start:end])
            start = None
        start = unit_start if start is None else start
        end = unit_end
    if start is not None:
        pieces.append(text[start:end])
    return pieces


class Search:
    """BM25 over passages and their titles, with the words of every script, as `compress` has them.

    Args:
        passages: The passages.
    """

    def __init__(self, passages: Sequence[Passage]):
        self._passages = passages
        self._index = BM25Index([f"{p.title}\n{p.text}" for p in passages], range(len(passages)))

    def find(self, query: str, top_k: int) -> list[Passage]:
        """Return the `top_k` passages that fit `query` best, best first; of equal ones the first.

        Where no passage shares a word with the query (a question of stop words, documents of emoji) these are the first
        passages, and a warning says so.
        """
        scores = self._index.scores(query)
        if not bool((scores > 0).any()):
            logger.warning("no passage shares a word with %r: the search returns the first ones", query)
        best = scores.argsort(descending=True, stable=True)[:top_k]
        return [self._passages[index] for index in best.tolist()]


def search(passages: Sequence[Passage], query: str, top_k: int) -> list[Passage]:
    """Search once; for several queries make a `Search`."""
    return Search(passages).find(query, top_k)


def _read_pdf(path: Path) -> list[tuple[str, str]]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingDependencyError('pypdf is needed: pip install "draftapprox-integrations[cli]"') from error
    try:
        reader = PdfReader(path)
        title = (reader.metadata.title if reader.metadata else None) or path.stem
        pages = [(f"{title}, page {number}", page.extract_text()) for number, page in enumerate(reader.pages, 1)]
    except Exception as error:  # pypdf lets errors of any type through: broken or encrypted files, missing packages
        raise InvalidInputError(f"cannot read {path}: {error}") from error
    return [(name, text) for name, text in pages if text.strip()]


def _title(text: str, path: Path) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if path.suffix.lower() in (".md", ".markdown") and not first.startswith("#"):
        return path.stem
    first = first.lstrip("# ").strip()
    return first if 0 < len(first) <= 100 else path.stem
