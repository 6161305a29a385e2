"""Locks that a forked child can take.

`os.fork` copies locks as they are, and of the threads only the one that calls it. A lock that another thread held would
stay locked in the child for ever.
"""

from __future__ import annotations

import os
import threading
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakSet

C = TypeVar("C", bound="type[Any]")


class ForkSafeLock:
    """A lock, to be used with `with`, that is free in a forked child unless the forking thread itself held it.

    What another thread was changing under it is in the child as that thread left it.

    Args:
        reentrant: Whether the thread that holds it may take it again.
    """

    def __init__(self, *, reentrant: bool = False):
        self._reentrant = reentrant
        self._lock: Any
        self._owner: int | None
        self._renew()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()

    def locked(self) -> bool:
        """Whether a thread holds it."""
        return self._depth > 0

    def _renew(self) -> None:
        self._lock = threading.RLock() if self._reentrant else threading.Lock()
        self._owner = None
        self._depth = 0

    def _after_fork(self) -> None:
        if self._owner != threading.get_ident():
            self._renew()


def renewed_in_children(cls: C) -> C:
    """Class decorator: the class's cached properties can be computed in a child; Python 3.11 has a lock in each."""
    _classes.add(cls)
    return cls


_locks: WeakSet[ForkSafeLock] = WeakSet()
_classes: WeakSet[type[Any]] = WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock._after_fork()
    for cls in list(_classes):
        for value in vars(cls).values():
            if isinstance(value, cached_property) and hasattr(value, "lock"):
                value.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
