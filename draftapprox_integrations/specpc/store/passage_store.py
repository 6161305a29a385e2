"""Store of passages' keys: the latest in memory, all of them in a file if you name one.

The file is an SQLite database in WAL mode: writes survive a crash, and any number of processes may read while one
writes. Each value has a checksum; damaged values are dropped and computed again. The least recently used passages are
evicted when the file exceeds `max_bytes`. A file of another kind is refused; one without write permission is opened
read-only.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import InvalidInputError
from ...models.locks import ForkSafeLock
from .sqlite import check_ours, open_or_create, open_read_only, transaction, used_bytes

_IN_FILE = 4 << 30  # bytes
_IN_MEMORY = 256 << 20  # bytes; also the cache in front of a file
_LOW_WATER = 0.9  # a full file is pruned to this share of `max_bytes`, so that few writes prune

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class StoreStats:
    """Content and use of a store.

    Attributes:
        passages: Pieces of passages in the file; without a file, in memory.
        bytes: Their size.
        max_bytes: Limit of that size.
        hits, misses: Lookups of this object with and without a result.
        dropped: Pieces that this object evicted from the file for lack of room.
    """

    passages: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    dropped: int = 0


class PassageStore:
    """Keeps passages' keys between queries. Safe to use from many threads and processes.

    Args:
        path: The file; created if missing. None: memory only.
        max_bytes: Limit of the file's content (of the memory, without a file); least recently used first out.
        memory_bytes: Limit of the memory cache in front of a file.

    Raises:
        InvalidInputError: the file cannot be created or is no store, or a limit is not a positive number.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = _IN_FILE, memory_bytes: int = _IN_MEMORY
    ):
        integers = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (max_bytes, memory_bytes))
        if not integers or max_bytes < 1 or memory_bytes < 0:
            raise InvalidInputError(
                f"max_bytes must be >= 1 and memory_bytes >= 0, whole numbers; got {max_bytes!r}, {memory_bytes!r}"
            )
        self.path = None if path is None else Path(path).expanduser()
        self.max_bytes = max_bytes
        self._memory_bytes = max_bytes if path is None else memory_bytes
        self._memory: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._touched: dict[bytes, int] = {}
        self._lock = ForkSafeLock(reentrant=True)
        self._database: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._read_only = False
        self._hits = self._misses = self._dropped = 0
        if self.path is not None:
            if self.path.is_dir():
                raise InvalidInputError(f"{self.path} is a folder; name a file for the store, such as passages.db")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidInputError(f"cannot make a store at {self.path}: {error.strerror or error}") from error
            self._with_database(lambda database: None)

    def get(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Values of the names that are stored and intact."""
        found = {}
        with self._lock:
            for name in dict.fromkeys(names):
                if name in self._memory:
                    self._memory.move_to_end(name)
                    found[name] = self._memory[name]
            missing = [name for name in dict.fromkeys(names) if name not in found]
            if missing and self.path is not None:
                for name, value in self._with_database(lambda database: self._select(database, missing)).items():
                    found[name] = value
                    self._remember(name, value)
            now = time.time_ns()
            if self.path is not None:
                self._touched.update(dict.fromkeys(found, now))
            self._hits += len(found)
            self._misses += len(set(names)) - len(found)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Store values; they are in the file when this returns."""
        with self._lock:
            for name, value in values.items():
                self._remember(name, value)
            if self.path is not None and values:
                self._with_database(lambda database: self._insert(database, values))

    def prune(self, max_bytes: int | None = None) -> int:
        """Evict the least recently used until at most `max_bytes` are left; the number of evicted pieces."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        with self._lock:
            if self.path is not None:
                self._memory.clear()
                self._size = 0
                return self._with_database(lambda database: self._prune(database, limit))
            before = len(self._memory)
            self._shrink_memory(limit)
            return before - len(self._memory)

    def stats(self) -> StoreStats:
        """Content and use so far."""
        with self._lock:
            count, size = len(self._memory), self._size
            if self.path is not None:
                count, size = self._with_database(
                    lambda database: (
                        int(database.execute("SELECT COUNT(*) FROM passages").fetchone()[0]),
                        used_bytes(database),
                    )
                )
            return StoreStats(count, size, self.max_bytes, self._hits, self._misses, self._dropped)

    def close(self) -> None:
        """Write usage times and close the file; a later call opens it again."""
        with self._lock:
            if self._database is not None and self._process == os.getpid():
                if self.path is not None and self.path.exists():
                    self._with_database(self._write_touched)
                self._database.close()
            self._database = None

    def __reduce__(self) -> tuple[Callable[..., PassageStore], tuple[str | None, int, int]]:
        return _reopen, (None if self.path is None else str(self.path), self.max_bytes, self._memory_bytes)

    @property
    def has_default_limits(self) -> bool:
        """Whether `PassageStore(path)` would be the same; without a file, a store is only a cache, and it is."""
        return self.path is None or (self.max_bytes, self._memory_bytes) == (_IN_FILE, _IN_MEMORY)

    def __deepcopy__(self, memo: object) -> PassageStore:
        return self

    def __repr__(self) -> str:
        return f"PassageStore({str(self.path) if self.path else None!r}, max_bytes={self.max_bytes})"

    # ------------------------------------------------------------------ memory

    def _remember(self, name: bytes, value: bytes) -> None:
        self._size += len(value) - len(self._memory.pop(name, b""))
        self._memory[name] = value
        self._shrink_memory(self._memory_bytes)

    def _shrink_memory(self, limit: int) -> None:
        while self._size > limit and self._memory:
            self._size -= len(self._memory.popitem(last=False)[1])

    # ------------------------------------------------------------------ file

    def _with_database(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the open file.

        A damaged file is quarantined and recreated; a file without write permission is opened read-only.
        """
        assert self.path is not None
        for attempt in (1, 2, 3):
            try:
                return work(self._open())
            except sqlite3.OperationalError as error:  # locked for a minute, disk full, no permission
                denied = any(words in str(error) for words in ("readonly", "unable to open"))
                if self._read_only or not denied or not self.path.is_file():
                    raise InvalidInputError(f"cannot use the store {self.path}: {error}") from error
                logger.warning("no permission to write the store %s: it is used read-only", self.path)
                self._disconnect()
                self._read_only = True
            except sqlite3.DatabaseError as error:
                if attempt == 3 or self._read_only:
                    raise InvalidInputError(f"cannot use the store {self.path}: {error}") from error
                self._quarantine(error)
        raise AssertionError

    def _open(self) -> sqlite3.Connection:
        assert self.path is not None
        if self._database is not None and self._process == os.getpid() and self.path.exists():
            return self._database
        if self._process == os.getpid():
            self._disconnect()
        check_ours(self.path)
        database = open_read_only(self.path) if self._read_only else open_or_create(self.path)
        self._database, self._process = database, os.getpid()  # a forked child opens its own connection
        return database

    def _quarantine(self, error: Exception) -> None:
        assert self.path is not None
        self._disconnect()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        try:
            self.path.replace(aside)
            for ending in ("-wal", "-shm"):
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        except OSError as failure:
            raise InvalidInputError(
                f"the store {self.path} is damaged ({error}) and cannot be moved aside: {failure.strerror or failure}. "
                "Remove it, or name another file."
            ) from failure
        logger.warning("the store %s is damaged (%s); it was moved to %s and recreated", self.path, error, aside.name)

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _select(self, database: sqlite3.Connection, names: Sequence[bytes]) -> dict[bytes, bytes]:
        found, damaged = {}, []
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = database.execute(f"SELECT name, value, checksum FROM passages WHERE name IN ({marks})", some)
            for name, value, checksum in rows:
                if zlib.crc32(value) == checksum:
                    found[name] = value
                else:
                    damaged.append((name,))
        if damaged:
            logger.warning("%d damaged passages in the store %s are computed again", len(damaged), self.path)
        if damaged and not self._read_only:
            database.executemany("DELETE FROM passages WHERE name = ?", damaged)
        return found

    def _insert(self, database: sqlite3.Connection, values: Mapping[bytes, bytes]) -> None:
        if self._read_only:
            return
        now = time.time_ns()
        rows = [(name, value, zlib.crc32(value), now) for name, value in values.items()]
        with transaction(database):
            database.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?)", rows)
            self._write_touched(database)
        if used_bytes(database) > self.max_bytes:
            self._dropped += self._prune(database, int(self.max_bytes * _LOW_WATER))

    def _write_touched(self, database: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, {}
        if self._read_only:
            return
        database.executemany(
            "UPDATE passages SET used = max(used, ?) WHERE name = ?", [(used, name) for name, used in touched.items()]
        )

    def _prune(self, database: sqlite3.Connection, limit: int) -> int:
        if self._read_only:
            raise InvalidInputError(f"cannot make the store {self.path} smaller: it cannot be written")
        self._write_touched(database)
        dropped = 0
        while used_bytes(database) > limit:
            count = int(database.execute("SELECT COUNT(*) FROM passages").fetchone()[0])
            if count == 0:
                break
            share = 1 - limit / used_bytes(database)
            some = max(1, min(count, int(count * share)))
            database.execute(
                "DELETE FROM passages WHERE rowid IN (SELECT rowid FROM passages ORDER BY used LIMIT ?)", (some,)
            )
            dropped += some
        database.executescript("PRAGMA incremental_vacuum")  # execute() would free one page
        database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return dropped


def _reopen(path: str | None, max_bytes: int, memory_bytes: int) -> PassageStore:
    return PassageStore(path, max_bytes=max_bytes, memory_bytes=memory_bytes)


def open_store(store: PassageStore | str | os.PathLike[str] | None) -> PassageStore:
    """The given store, the store in a file, or for None one of 256 MiB in memory."""
    if store is None:
        return PassageStore(max_bytes=_IN_MEMORY)
    if not isinstance(store, PassageStore | str | os.PathLike):
        raise InvalidInputError(f"store must be a PassageStore or the name of its file; got {type(store).__name__}")
    return store if isinstance(store, PassageStore) else PassageStore(store)
