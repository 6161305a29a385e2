"""Keys of a passage as bytes for the store, and back."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class KeyCodec(Protocol):
    """Packs keys [KV heads, tokens, head_dim] into bytes.

    Attributes:
        name: Tells stored values of different codecs apart.
    """

    name: str

    def pack(self, keys: Tensor) -> bytes:
        """Bytes of float32 keys [KV heads, tokens, head_dim]."""

    def unpack(self, value: bytes, kv_heads: int) -> Tensor:
        """Keys [KV heads, tokens, head_dim] from `pack`."""


class Int8KeyCodec:
    """int8 with one bfloat16 scale for each token and KV head: head_dim + 2 bytes per token and KV head."""

    name = "int8"

    def pack(self, keys: Tensor) -> bytes:
        """Bytes of float32 keys [KV heads, tokens, head_dim]."""
        scale = keys.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30).div(127).to(torch.bfloat16)
        codes = (keys / scale.float()).round().clamp(-127, 127).to(torch.int8)
        return b"".join(part.numpy().tobytes() for part in (_size_of(keys), scale.view(torch.int16), codes))

    def unpack(self, value: bytes, kv_heads: int) -> Tensor:
        """bfloat16 [KV heads, tokens, head_dim]."""
        tokens, width, data = _read_size(value)
        middle = 2 * kv_heads * tokens
        scale = data[:middle].view(torch.bfloat16).view(kv_heads, tokens, 1)
        codes = data[middle:].view(torch.int8).view(kv_heads, tokens, width)
        return (codes.float() * scale.float()).to(torch.bfloat16)


class Float32KeyCodec:
    """Keys in full precision: what int8 is compared with."""

    name = "float32"

    def pack(self, keys: Tensor) -> bytes:
        """Bytes of float32 keys [KV heads, tokens, head_dim]."""
        return _size_of(keys).numpy().tobytes() + keys.float().contiguous().numpy().tobytes()

    def unpack(self, value: bytes, kv_heads: int) -> Tensor:
        """float32 [KV heads, tokens, head_dim]."""
        tokens, width, data = _read_size(value)
        return data.view(torch.float32).view(kv_heads, tokens, width)


def _size_of(keys: Tensor) -> Tensor:
    return torch.tensor(keys.shape[1:], dtype=torch.int32)


def _read_size(value: bytes) -> tuple[int, int, Tensor]:
    data = torch.frombuffer(bytearray(value), dtype=torch.uint8)
    tokens, width = data[:8].view(torch.int32).tolist()
    return tokens, width, data[8:]
