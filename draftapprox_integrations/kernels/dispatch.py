"""Choice between a Triton kernel and its PyTorch form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import ParamSpec

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

P = ParamSpec("P")

_forced: ContextVar[bool] = ContextVar("draftapprox_triton_forced", default=False)
# Kernels that failed here, with dtype and head_dim: a kernel may fit the chip's memory with some of them only.
_failed: set[tuple[str, torch.dtype, int]] = set()


def use_triton(tensor: Tensor) -> bool:
    """Whether functions of this folder run their Triton kernel on `tensor`: on a GPU, if Triton is installed."""
    return _installed() and (tensor.is_cuda or _forced.get())


@contextmanager
def forced() -> Iterator[None]:
    """Run the kernels on CPU tensors too, in this thread or task, for tests.

    Triton then has to interpret them: TRITON_INTERPRET=1 must be set before anything imports triton.
    """
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


def dispatch(
    like: Tensor, kernel: Callable[P, Tensor], torch_form: Callable[P, Tensor], *args: P.args, **kwargs: P.kwargs
) -> Tensor:
    """Call `kernel` with the arguments where it can run, else `torch_form`.

    A kernel that raises is not tried again for this dtype and head_dim: some drivers and chips cannot compile it. Out
    of memory is no such failure, and is raised; so is whatever happens while a CUDA graph is captured, which is broken
    then. Call a function once before it is captured: that compiles its kernel.

    Args:
        like: The tensor that decides: its device, dtype and last dimension.
        kernel: Launches the Triton kernel; imports it first.
        torch_form: The same function in PyTorch.
        args, kwargs: Arguments of both.
    """
    name = kernel.__module__.rpartition(".")[2]
    key = (name, like.dtype, like.shape[-1])
    if use_triton(like) and key not in _failed:
        try:
            with torch.cuda.device_of(like):  # Triton launches on the current device
                return kernel(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if like.is_cuda and torch.cuda.is_current_stream_capturing():
                raise
            _failed.add(key)
            logger.warning("Triton kernel %s failed, PyTorch is used from now on: %r", name, error)
    return torch_form(*args, **kwargs)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
