"""What the Triton kernels share. Logits are in base 2: GPUs compute 2 ** x, and e ** x from it."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)  # e ** x == 2 ** (x * LOG2_E)

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def padded(size: int) -> int:
    """The power of two that holds `size` numbers; at least 16, the smallest side of a `tl.dot`."""
    return max(16, int(triton.next_power_of_2(size)))


def dot_type(like: Tensor) -> Any:
    """Triton dtype in which `tl.dot` multiplies; float32 on the CPU: Triton's interpreter cannot multiply bfloat16."""
    return _TYPES[like.dtype] if like.is_cuda else tl.float32


def block_size(like: Tensor, head_pad: int, value_pad: int) -> int:
    """Keys per step of a program, a power of two: those of a step take 16 KiB, and so do their values.

    Triton loads ahead two steps; all three fit the shared memory of every GPU since compute capability 8.0.
    """
    return max(16, min(128, 2**14 // (max(head_pad, value_pad) * like.element_size())))


@triton.jit
def softmax_step(
    logits: tl.tensor,
    values: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    weighted: tl.tensor,
    dot_type: tl.constexpr,
) -> tl.tensor:
    """Add one block of keys to a running softmax.

    Args:
        logits: float32 [queries, keys], base 2; -inf at keys that do not count.
        values: [keys, value_dim], 0 at keys that do not count.
        highest: float32 [queries], the highest logit so far; -inf before the first.
        total, weighted: Sums so far of the weights [queries], and of weights times values [queries, value_dim], both in
            units of 2 ** highest.
        dot_type: As `dot_type` returns it.

    Returns:
        The new (highest, total, weighted).
    """
    new = tl.maximum(highest, tl.max(logits, axis=1))
    shift = tl.where(new == float("-inf"), 0.0, new)  # -inf minus -inf is NaN
    weights = tl.exp2(logits - shift[:, None])
    scale = tl.exp2(highest - shift)
    total = total * scale + tl.sum(weights, axis=1)
    products = tl.dot(weights.to(values.dtype).to(dot_type), values.to(dot_type), input_precision="ieee")
    return new, total, weighted * scale[:, None] + products
