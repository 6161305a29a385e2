"""Compile every kernel for GPUs that this machine need not have: `python -m tests.helpers.compile_kernels`.

The launch code runs on CPU tensors; in place of a launch, the kernel is compiled to machine code with Triton's own
assembler. What it cannot show is a kernel's result, which the interpreter shows.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from draftapprox_integrations.config import KVQuantization
from draftapprox_integrations.kernels import triton_decode, triton_tail_scores, triton_vertical_slash
from draftapprox_integrations.kernels.pairs import PackedPairs, pairs_of
from draftapprox_integrations.speckv.cache.codec import TorchCodec

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (heads, KV heads, head_dim, value_dim)
SHAPES = ((32, 8, 128, 128), (3, 3, 80, 96), (16, 1, 256, 256), (4, 2, 24, 16))
CAPABILITIES = (80, 90)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have
NAMES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}


def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Stands in for `JITFunction.run`."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    if "dot_type" in values:  # on a GPU the dtype of the tensors
        values["dot_type"] = {torch.float32: tl.float32, torch.float16: tl.float16}.get(args[0].dtype, tl.bfloat16)
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature = {name: "constexpr" if name in constants else type_name(values[name]) for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name not in constants and divisible(values[name])
    }
    for capability in CAPABILITIES:
        source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
        options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        shared = binary.metadata.shared
        sys.stdout.write(f"{kernel.__name__} sm_{capability}: {shared} bytes shared\n")
        assert shared <= SHARED_MEMORY[capability], (kernel.__name__, capability, shared, constants)


def type_name(value: Any) -> str:
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def divisible(value: Any) -> bool:
    """What Triton specializes on at a launch: aligned pointers and strides."""
    return isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)


def launches(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    bits: tuple[int, ...] = (8, 4),
    reductions: tuple[str, ...] = ("max", "sum"),
) -> None:
    """Launch every kernel, with each of these settings."""
    query = torch.empty(2, heads, head_dim, dtype=dtype)
    keys, values = (torch.zeros(2, kv_heads, 500, d, dtype=dtype) for d in (head_dim, value_dim))
    lengths = torch.full((2, kv_heads), 500)
    parts: list[Any] = [pairs_of(keys, values, lengths)]
    for each in bits:
        parts.append(PackedPairs(*TorchCodec(KVQuantization(bits=each)).pack(keys, values), lengths))
    triton_decode.attend(query, parts, 0.1)
    queries, first_keys = torch.zeros(2, heads, 500, head_dim, dtype=dtype), torch.zeros(2, dtype=torch.long)
    for reduction in reductions:
        triton_tail_scores.reduce_tail(queries, keys, first_keys, torch.ones(2, 40), 460, 0.1, reduction)
    triton_vertical_slash.attend(queries[0], keys[0], values[0], torch.zeros(kv_heads, 90, dtype=torch.long), 64, 0.1)


def install() -> None:
    """Compile from now on in place of a launch. It is for good: run it in a process of its own."""
    from triton.runtime.jit import JITFunction

    JITFunction.run = compile_only


def main() -> None:
    """Compile; raises at the first failure."""
    install()
    for dtype in DTYPES:
        for shape in SHAPES:
            sys.stdout.write(f"{dtype}, {shape}\n")
            launches(dtype, *shape)


if __name__ == "__main__":
    main()
