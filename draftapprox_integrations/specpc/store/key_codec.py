"""Keys of passages as bytes, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_keys(keys: Tensor) -> bytes:
    """Keys as bytes: int8, with a bfloat16 scale for each token and KV head.

    Args:
        keys: float32 [pairs, tokens, head_dim].
    """
    scale = keys.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30).div(127).to(torch.bfloat16)
    codes = (keys / scale.float()).round().clamp(-127, 127).to(torch.int8)
    size = torch.tensor([keys.shape[1], keys.shape[2]], dtype=torch.int32)
    return b"".join(part.numpy().tobytes() for part in (size, scale.view(torch.int16), codes))


def unpack_keys(value: bytes, pairs: int) -> Tensor:
    """bfloat16 [pairs, tokens, head_dim] from `pack_keys`."""
    data = torch.frombuffer(bytearray(value), dtype=torch.uint8)
    tokens, width = data[:8].view(torch.int32).tolist()
    middle = 8 + 2 * pairs * tokens
    scale = data[8:middle].view(torch.bfloat16).view(pairs, tokens, 1)
    codes = data[middle:].view(torch.int8).view(pairs, tokens, width)
    return (codes.float() * scale.float()).to(torch.bfloat16)
