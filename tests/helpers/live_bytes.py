"""Bytes of live tensors, counted op by op: torch.cuda.max_memory_allocated for a CPU, and exactly repeatable."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside the block create, each until it is freed.

    What was there before, parameters and inputs, does not count. Memory that a kernel allocates and frees within one
    operation is not seen.

    Attributes:
        bytes: Bytes of the storages that are alive now.
        peak: Most bytes that were alive at once.
        at_peak: What was alive then: (bytes, operation that made it, shape), largest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.at_peak: list[tuple[int, str, tuple[int, ...]]] = []
        self._older: set[int] = set()  # storages that operations were given and did not make
        self._alive: dict[int, tuple[int, str, tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and not self._knows(storage := leaf.untyped_storage()):
                self._older.add(storage._cdata)
                weakref.finalize(storage, self._older.discard, storage._cdata)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf, str(func))
        return out

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.bytes, []

    def _add(self, tensor: Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        if self._knows(storage):
            return
        key = storage._cdata
        self._alive[key] = (storage.nbytes(), operation, tuple(tensor.shape))
        self.bytes += storage.nbytes()
        # torch gives one Python object per storage, which lives as long as the storage does
        weakref.finalize(storage, self._drop, key)
        if self.bytes > self.peak:
            self.peak, self.at_peak = self.bytes, sorted(self._alive.values(), reverse=True)

    def _knows(self, storage: torch.UntypedStorage) -> bool:
        return storage._cdata in self._older or storage._cdata in self._alive

    def _drop(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)[0]
