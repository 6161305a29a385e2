"""Resolution of `device` and `dtype` arguments for `load_model`."""

from __future__ import annotations

import torch

# Below this size bfloat16 is not faster on any hardware, and float32 keeps tiny test models exact.
_SMALL_MODEL_PARAMETERS = 50_000_000


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device to load on; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: not a device, or CUDA without a GPU.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0'; got {device!r}"
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} needs a GPU and a PyTorch build with CUDA; neither 'auto' nor torch finds one"
        )
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype, or None for "auto", which depends on the model's size (see `best_dtype`).

    Raises:
        ValueError: not a dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(resolved, torch.dtype):
        raise ValueError(f"dtype must be 'auto' or one of 'float32', 'bfloat16', 'float16'; got {dtype!r}")
    return resolved


def best_dtype(device: torch.device, parameters: int) -> torch.dtype:
    """Return the dtype for a model of `parameters` parameters.

    bfloat16 where `device` multiplies it faster than float32, float16 on older CUDA devices, else float32.
    """
    if parameters < _SMALL_MODEL_PARAMETERS:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        # torch 2.11 and newer have it
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.float32
