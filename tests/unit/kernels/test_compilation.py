"""The kernels compile for GPUs, which the interpreter does not show."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.unit.kernels.conftest import TRITON


@pytest.mark.thorough
@pytest.mark.skipif(TRITON < (3, 7), reason="triton 3.7 is not installed; older ones compile through other names")
def test_kernels_compile_without_a_gpu() -> None:
    # Each kernel once, at the size that compiles fastest; `python -m tests.helpers.compile_kernels` compiles them all.
    code = (
        "import torch; from tests.helpers import compile_kernels\n"
        "compile_kernels.CAPABILITIES = (90,)\n"
        "compile_kernels.install()\n"
        "compile_kernels.launches(torch.bfloat16, 8, 2, 16, 16, bits=(4,), reductions=('max',))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for kernel in ("attend_dense", "attend_packed", "merge", "find_lse", "reduce_keys", "attend_block"):
        assert f"{kernel} sm_90" in done.stdout
