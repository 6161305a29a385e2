"""Where the kernels run: on a GPU if there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from draftapprox_integrations.kernels import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run, and a kernel that fails raises instead of leaving the work to PyTorch."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    failed: list[object] = []
    monkeypatch.setattr(dispatch.logger, "warning", lambda *args: failed.append(args))
    with dispatch.forced(), np.errstate(all="ignore"):  # the interpreter warns of log2(0), a GPU does not
        yield
    dispatch._failed.clear()
    assert not failed, failed
