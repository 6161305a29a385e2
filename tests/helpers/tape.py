"""A stand-in for a CUDA graph on the CPU: records the operations of a piece of work, and runs them again.

As in a graph, every operation reads and writes the same memory each time, no Python of the work runs, and an operation
that hands a value to the host is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS_VALUES = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Tape(TorchDispatchMode):
    """The recorded operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS_VALUES:
            raise RuntimeError(f"{func} hands values to the host")
        out = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        # Views and in-place results share memory with an input; the others must come to lie where they lie now.
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        placed = [leaf for leaf in new if leaf.untyped_storage().data_ptr() not in inputs]
        self.operations.append((func, args, kwargs or {}, placed))
        return out

    def replay(self) -> None:
        """Run the operations on what their tensors hold now."""
        for func, args, kwargs, placed in self.operations:
            out = func(*args, **kwargs)
            if placed:
                results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
                assert len(results) == len(placed)
                for old, result in zip(placed, results, strict=True):
                    old.copy_(result)


class _NoReads(TorchFunctionMode):
    """Refuses what hands values to the host without passing the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            raise RuntimeError(f"{func} hands values to the host")
        return func(*args, **(kwargs or {}))


def record_tape(work: Callable[[], None], warm_up: Callable[[], object]) -> Tape:
    """As `CudaRecorder`. A capture does not run the work, so what it changed is put back."""
    warm_up()
    warm_up()
    tape = Tape()
    with _NoReads(), tape:
        work()
    return tape
