"""Where the kernels run: on a GPU if there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

import numpy as np
import pytest
import torch

from draftapprox_integrations.kernels import dispatch

try:
    TRITON = tuple(int(part) for part in metadata.version("triton").split(".")[:2])
except metadata.PackageNotFoundError:
    TRITON = (0, 0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run, and a kernel that fails raises instead of leaving the work to PyTorch."""
    if TRITON < (3, 7):
        pytest.skip("triton 3.7 is not installed; the interpreter of older ones fails with numpy 2.4")
    failed: list[object] = []
    monkeypatch.setattr(dispatch.logger, "warning", lambda *args: failed.append(args))
    with dispatch.forced(), np.errstate(all="ignore"):  # the interpreter warns of log2(0), a GPU does not
        yield
    dispatch._failed.clear()
    assert not failed, failed
