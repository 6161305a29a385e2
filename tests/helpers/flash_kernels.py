"""Loops in place of FlashAttention's kernels, which need a GPU; their parameters are those of versions 2, 3 and 4."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash_utils


class Kernels(ModuleType):
    """flash_attn as its documentation has it: causal to the lower right, windows, sequences one after the other."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.calls: list[str] = []

    def _attend(self, q: Any, k: Any, v: Any, scale: Any, causal: Any, window: Any) -> Any:
        left, right = window
        offset = len(k) - len(q)
        rows, columns = torch.arange(len(q))[:, None] + offset, torch.arange(len(k))
        seen = torch.ones(len(q), len(k), dtype=torch.bool)
        if causal:
            seen &= columns <= rows
        if left >= 0:
            seen &= columns >= rows - left
        if right >= 0:
            seen &= columns <= rows + right
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        return torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, -torch.inf).softmax(-1), v)

    def flash_attn_func(
        self,
        q: Any,
        k: Any,
        v: Any,
        dropout_p: float = 0.0,
        softmax_scale: Any = None,
        causal: bool = False,
        window_size: Any = (-1, -1),
    ) -> Any:
        self.calls.append("dense")
        rows = [self._attend(*row, softmax_scale, causal, window_size) for row in zip(q, k, v, strict=True)]
        return torch.stack(rows)

    def flash_attn_varlen_func(
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any,
        max_seqlen_q: Any, max_seqlen_k: Any, dropout_p: float = 0.0, softmax_scale: Any = None,
        causal: bool = False, window_size: Any = (-1, -1),
    ) -> Any:  # fmt: skip
        self.calls.append("varlen")
        out = torch.zeros_like(q)
        pieces = zip(cu_seqlens_q.unfold(0, 2, 1).tolist(), cu_seqlens_k.unfold(0, 2, 1).tolist(), strict=True)
        for (a, b), (c, d) in pieces:
            out[a:b] = self._attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal, window_size)
        return out

    def flash_attn_with_kvcache(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("paged caches are not ours")


class Kernels3(Kernels):
    """flash_attn_interface: no dropout, more options."""

    def flash_attn_func(  # type: ignore[override]
        self,
        q: Any,
        k: Any,
        v: Any,
        softmax_scale: Any = None,
        causal: bool = False,
        qv: Any = None,
        window_size: Any = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Any:
        return super().flash_attn_func(q, k, v, 0.0, softmax_scale, causal, window_size)

    def flash_attn_varlen_func(  # type: ignore[override]
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any,
        max_seqlen_q: Any, max_seqlen_k: Any, seqused_q: Any = None, seqused_k: Any = None,
        softmax_scale: Any = None, causal: bool = False, qv: Any = None, window_size: Any = (-1, -1),
        softcap: float = 0.0, deterministic: bool = False,
    ) -> Any:  # fmt: skip
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return super().flash_attn_varlen_func(q, k, v, *lengths, 0.0, softmax_scale, causal, window_size)


class Kernels4(Kernels):
    """flash_attn.cute of flash-attn-4 4.0.0b36: None for no window, and the log-sum-exp behind the output."""

    def flash_attn_func(  # type: ignore[override]
        self,
        q: Any,
        k: Any,
        v: Any,
        qv: Any = None,
        gather_kv_indices: Any = None,
        softmax_scale: Any = None,
        causal: bool = False,
        window_size: Any = (None, None),
        learnable_sink: Any = None,
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Any:
        window = tuple(-1 if size is None else size for size in window_size)
        return super().flash_attn_func(q, k, v, 0.0, softmax_scale, causal, window), None

    def flash_attn_varlen_func(  # type: ignore[override]
        self, q: Any, k: Any, v: Any, qv: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None,
        max_seqlen_q: Any = None, max_seqlen_k: Any = None, page_table: Any = None, softmax_scale: Any = None,
        causal: bool = False, window_size: Any = (None, None), learnable_sink: Any = None, softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Any:  # fmt: skip
        window = tuple(-1 if size is None else size for size in window_size)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return super().flash_attn_varlen_func(q, k, v, *lengths, 0.0, softmax_scale, causal, window), None


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, version: int = 2) -> Iterator[Kernels]:
    """What transformers finds as the package of a FlashAttention version."""
    found = {2: Kernels, 3: Kernels3, 4: Kernels4}[version]()
    padding: Any = ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    modules: dict[str, Any] = {
        2: {"flash_attn": found, "flash_attn.bert_padding": padding},
        3: {"flash_attn_interface": found},
        4: {"flash_attn": ModuleType("flash_attn"), "flash_attn.cute": found},
    }[version]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(flash_utils, f"is_flash_attn_{version}_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)  # and again afterwards: it must be looked up anew
    try:
        yield found
    finally:
        flash_utils._loaded_implementation = None
