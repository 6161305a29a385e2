"""Text that was left out of requests, to be asked for later: a store in memory with a limit of size and of age."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInputError
from ..models.locks import ForkSafeLock

_ENTRY_BYTES = 200  # of the Python objects of one piece, about


@dataclass(frozen=True)
class DroppedPiece:
    """Text that was left out.

    Attributes:
        text: The text.
        start: Index of its first character in the passage it stood in.
        passage: Index of that passage among those of its message.
    """

    text: str
    start: int
    passage: int = 0


class DroppedStore:
    """Keeps dropped text under ids that cannot be guessed. Safe to use from many threads.

    Args:
        max_bytes: Most bytes to keep, >= 1; what was not asked for longest goes first.
        seconds: Seconds that a text is kept after it was put or last asked for, > 0.
        clock: Returns seconds.

    Raises:
        InvalidInputError: a limit is out of range.
    """

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        if max_bytes < 1 or not seconds > 0:
            raise InvalidInputError(f"max_bytes must be >= 1 and seconds > 0; got {max_bytes!r} and {seconds!r}")
        self.max_bytes, self.seconds, self._clock = max_bytes, seconds, clock
        self._entries: OrderedDict[str, tuple[float, int, tuple[DroppedPiece, ...]]] = OrderedDict()
        self._bytes = 0
        self._lock = ForkSafeLock()

    def put(self, pieces: Sequence[DroppedPiece]) -> str:
        """Keep some pieces; return their id. Pieces larger than the store are forgotten at once."""
        size = sum(_ENTRY_BYTES + len(piece.text.encode("utf-8", "surrogatepass")) for piece in pieces)
        key = f"dropped-{secrets.token_urlsafe(12)}"
        with self._lock:
            self._forget_old()
            if size <= self.max_bytes:
                self._entries[key] = (self._clock() + self.seconds, size, tuple(pieces))
                self._bytes += size
            while self._bytes > self.max_bytes:
                self._remove(next(iter(self._entries)))
        return key

    def get(self, key: str) -> list[DroppedPiece] | None:
        """Return the pieces under an id, None if there is none or no longer."""
        with self._lock:
            self._forget_old()
            if key not in self._entries:
                return None
            _, size, pieces = self._entries.pop(key)
            self._entries[key] = (self._clock() + self.seconds, size, pieces)
            return list(pieces)

    @property
    def bytes(self) -> int:
        """Bytes in use, about."""
        with self._lock:
            return self._bytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._entries:
            key, (ends, _, _) = next(iter(self._entries.items()))  # the order of use is the order of the ends
            if ends > now:
                break
            self._remove(key)

    def _remove(self, key: str) -> None:
        self._bytes -= self._entries.pop(key)[1]


def dropped_content(key: str, pieces: Sequence[DroppedPiece]) -> dict[str, Any]:
    """The answer of the service: all the text, and piece by piece."""
    return {
        "id": key,
        "object": "draftapprox.dropped",
        "text": "\n".join(piece.text for piece in pieces),
        "pieces": [{"passage": piece.passage, "start": piece.start, "text": piece.text} for piece in pieces],
    }
