"""Which form runs, and what happens when a kernel does not."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch

from draftapprox_integrations.kernels import dispatch
from draftapprox_integrations.kernels.dispatch import forced, use_triton


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda: True)
    monkeypatch.setattr(dispatch, "_failed", set())


def plain(x: Any) -> Any:
    return x + 1


def test_cpu_tensors_use_pytorch_unless_forced() -> None:
    x = torch.zeros(2)
    assert not use_triton(x)
    with forced():
        assert use_triton(x)
    assert not use_triton(x)


def test_without_triton_nothing_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda: False)
    with forced():
        assert not use_triton(torch.zeros(2))


def test_a_kernel_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def broken(x: Any) -> Any:
        calls.append(x)
        raise RuntimeError("no assembler")

    with forced(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert dispatch.dispatch(torch.zeros(2), broken, plain, torch.ones(1)).item() == 2
        assert len(calls) == 1
        dispatch.dispatch(torch.zeros(2, dtype=torch.float16), broken, plain, torch.ones(1))
    assert len(calls) == 2
    assert [record.message for record in caplog.records] == [
        "Triton kernel test_dispatch failed, PyTorch is used from now on: RuntimeError('no assembler')"
    ] * 2


def test_out_of_memory_is_raised() -> None:
    def full(x: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with forced(), pytest.raises(torch.OutOfMemoryError):
        dispatch.dispatch(torch.zeros(2), full, plain, torch.ones(1))


def test_the_folder_is_imported_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from draftapprox_integrations.kernels import decode_attention, dispatch\n"
        "assert 'draftapprox_integrations.kernels.triton_decode' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
