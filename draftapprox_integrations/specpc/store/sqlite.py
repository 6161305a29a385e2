"""The SQLite file of a `PassageStore`: recognize, create and open it."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path
from urllib.parse import quote

from ...errors import InvalidInputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (name BLOB PRIMARY KEY, value BLOB, checksum INTEGER, used INTEGER);
CREATE INDEX IF NOT EXISTS passages_used ON passages (used);
"""
_APPLICATION = 0x44415053  # marks a store in the file's header
_DATABASE_NAMES = {".db", ".sqlite", ".sqlite3", ".store"}


class transaction:  # noqa: N801 - used like a function
    """Context manager: one atomic write transaction."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def check_ours(path: Path) -> None:
    """Raises:
    InvalidInputError: the file is neither a store nor a damaged one.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(100)
    if head.startswith(b"SQLite format 3\0") and len(head) == 100:
        ours = int.from_bytes(head[68:72], "big") == _APPLICATION
    else:  # a damaged store, if its suffix is that of a database
        ours = not head or path.suffix.lower() in _DATABASE_NAMES
    if not ours:
        raise InvalidInputError(f"{path} is not a store of passages. Name another file; it is created if missing.")


def open_or_create(path: Path) -> sqlite3.Connection:
    """Open the database for reading and writing; create it if missing."""
    database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect on a new file only
    if database.execute("PRAGMA application_id").fetchone() == (0,):
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
    database.execute("PRAGMA journal_mode = WAL")
    if _identity(database) == 0:
        with transaction(database):
            if _identity(database) == 0:  # else another process was faster
                database.execute(f"PRAGMA user_version = {secrets.randbelow((1 << 31) - 1) + 1}")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA journal_size_limit = 67108864")
    database.executescript(_SCHEMA)
    return database


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open the database read-only."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        return _connect_read_only(uri)
    except sqlite3.OperationalError:  # its -wal and -shm files cannot be created
        return _connect_read_only(f"{uri}&immutable=1")


def _connect_read_only(uri: str) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        database.close()
        raise
    return database


def store_identity(path: Path) -> int | None:
    """Return the number that a store's file got when it was made; None without a file that can be read."""
    if not path.is_file():
        return None
    try:
        database = open_read_only(path)
        try:
            return _identity(database) or None
        finally:
            database.close()
    except sqlite3.Error:
        return None


def _identity(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""

    def pragma(name: str) -> int:
        return int(database.execute(f"PRAGMA {name}").fetchone()[0])

    return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")
