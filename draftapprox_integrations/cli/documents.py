"""Documents for the command line: the passages of a folder, and the search for them.

In a LangChain or LlamaIndex pipeline, use their loaders and retrievers instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError
from ..specpc.scoring.bm25 import BM25Index
from .reading import KINDS, SUFFIXES, TEXT_SUFFIXES, UnreadableFileError, read_file, read_parts
from .splitting import Layout, split

PASSAGE_CHARACTERS = 1000
MOST_TEXT = 32 << 20  # bytes: a larger text in a folder is a dump of data, and would take minutes to split

# Beside hidden ones, folders that hold what programs made.
_MADE_BY_PROGRAMS = ("__pycache__", "node_modules")
_LAYOUTS: dict[str, Layout] = {".csv": "table", ".tsv": "table", ".jsonl": "lines", ".ndjson": "lines"}
_NAMES_SHOWN = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences, rows or items of a document.

    Attributes:
        text: Text of the passage.
        title: Title of the document; with the page, slide, sheet or chapter where it has some.
        file: The document's file, relative to the folder.
        number, of: It is the `number`-th of `of` passages with this title and file.
    """

    text: str
    title: str
    file: str
    number: int = 1
    of: int = 1


def read_folder(folder: Path, max_characters: int = PASSAGE_CHARACTERS) -> list[Passage]:
    """Read all documents under `folder` and split them into passages.

    Files that are not read are named in a warning, one line per reason. Hidden files and folders, and folders that
    programs make (`node_modules`), are left out silently.

    Args:
        folder: Folder that is searched, with its subfolders, for the suffixes in `SUFFIXES`; or a single file of any
            suffix.
        max_characters: Approximate maximum number of characters of a passage; sentences, rows and items stay whole.

    Raises:
        InvalidInputError: the folder does not exist or contains no text; the single file cannot be read.
        MissingDependencyError: a package that reads the single file's format is not installed.
    """
    if not folder.exists():
        raise InvalidInputError(f"there is no folder {str(folder)!r}")
    if folder.is_file():
        passages = _passages(folder, folder.name, read_file(folder), max_characters)
        if not passages:
            raise InvalidInputError(f"no text found in {str(folder)!r}")
        return passages
    passages = []
    skipped: dict[str, list[str]] = {}
    for file in sorted(_files_under(folder)):
        name = file.relative_to(folder).as_posix()
        try:
            found = _passages(file, name, _read(file), max_characters)
            if not found:
                raise UnreadableFileError(
                    "no text in it (a scan?)" if file.suffix.lower() == ".pdf" else "no text in it"
                )
            passages += found
        except UnreadableFileError as error:
            skipped.setdefault(str(error), []).append(name)
    for reason, names in skipped.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        logger.warning("skipped %d file%s: %s (%s)", len(names), "s" if len(names) > 1 else "", reason, shown)
    if not passages:
        raise InvalidInputError(f"no text found under {str(folder)!r}; it looks for {KINDS}")
    return passages


def _read(file: Path) -> list[tuple[str, str]]:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnreadableFileError(f"{suffix} is not read" if suffix else "files without a suffix are not read")
    try:
        if suffix in TEXT_SUFFIXES and file.stat().st_size > MOST_TEXT:
            raise UnreadableFileError(f"text of more than {MOST_TEXT >> 20} MiB is not read in a folder")
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error
    return read_parts(file)


def _passages(file: Path, name: str, parts: Sequence[tuple[str, str]], max_characters: int) -> list[Passage]:
    layout = _LAYOUTS.get(file.suffix.lower(), "text")
    passages = []
    for title, text in parts:
        pieces = split(text, max_characters, layout)
        passages += [Passage(piece, title, name, number, len(pieces)) for number, piece in enumerate(pieces, 1)]
    return passages


def _files_under(folder: Path) -> Iterator[Path]:
    def warn(error: OSError) -> None:
        logger.warning("skipped: cannot read %s: %s", error.filename, error.strerror or error)

    for parent, folders, names in os.walk(folder, onerror=warn):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _MADE_BY_PROGRAMS]
        # Word's lock files, ~$report.docx, are hidden where it makes them.
        yield from (Path(parent, name) for name in names if not name.startswith((".", "~$")))


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
