"""Attention kernels for views: FlashAttention 2 to 4 and flex_attention, where the user's model was loaded with one.

The mask of a view is always the one for SDPA, so that padding is never attended to by mistake: None, or the whole
matrix of who may attend to whom. These kernels take a causal mask, padding at both ends and a sliding window instead. A
mask that is exactly this is translated. All other masks, and input that a kernel does not take, get SDPA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import causal_mask_function, flex_attention_mask, sliding_window_causal_mask_function
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK, _flash_attention_forward

# Names in a config: those of transformers, and the repositories that it takes in place of packages not installed
_FLASH = {name: name for name in ("flash_attention_2", "flash_attention_3", "flash_attention_4")}
_FLASH |= {repository: name for name, repository in FLASH_ATTN_KERNEL_FALLBACK.items() if name in _FLASH}

_COMPARED = 1 << 26  # most elements of a mask that are compared at once


@dataclass(eq=False)
class CausalPattern:
    """A mask in a form that the kernels take: causal to the lower right, so the last query may attend to the last key.

    Attributes:
        padding: bool [batch, keys], False at keys that nobody attends to, at the ends of a row; None: all True. The
            attention of padded queries is of no use.
        window: Number of last keys that a query may attend to, itself included; None: all.
        block_mask: The mask as flex_attention takes it, once it was asked for.
    """

    padding: Tensor | None = None
    window: int | None = None
    block_mask: Any = None


# backend(module, query, key, value, mask, window, scaling) -> [batch, new tokens, heads, head_dim], or None for SDPA.
# `window` is the layer's sliding window, if any; all others as for `Observer.observe`.
Backend = Callable[[torch.nn.Module, Tensor, Tensor, Tensor, Tensor | None, int | None, float], Tensor | None]


def backend_of(implementation: str | None) -> Backend | None:
    """Return the kernel for an `attn_implementation`, or None where that is SDPA, eager or not known here."""
    if implementation == "flex_attention":
        return _flex_attention
    if implementation is not None and _flash_version(implementation) is not None:
        return partial(_flash_attention, implementation)
    return None


def _flash_version(implementation: str) -> str | None:
    return _FLASH.get(implementation.split("@")[0].split(":")[0])  # a repository may come with a revision or function


def causal_pattern(mask: Tensor | None, queries: int, keys: int, window: int | None) -> CausalPattern | None:
    """Translate a mask; exact or None.

    Args:
        mask: As for `Observer.observe`. The result is kept for as long as the mask lives: all layers share it.
        queries, keys: Number of new tokens, and of all tokens so far.
        window: The layer's sliding window, if any. Whether it applies is read from the mask.
    """
    if mask is None:  # causal, nothing padded; SDPA itself aligns other sizes to the upper left
        return CausalPattern() if queries in (1, keys) else None
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:] != (1, queries, keys):
        return None
    known: dict[int | None, CausalPattern | None] = _patterns.setdefault(mask, {})
    if window not in known:
        known[window] = _read_pattern(mask[:, 0], window)
    return known[window]


_patterns: Any = WeakTensorKeyDictionary()  # mask -> window -> CausalPattern | None


def _read_pattern(mask: Tensor, window: int | None) -> CausalPattern | None:
    """The pattern of a bool mask [batch, queries, keys]."""
    attended = mask.any(dim=1)
    runs = attended[:, 0].int() + (attended[:, 1:] & ~attended[:, :-1]).sum(dim=1)
    if bool((runs > 1).any()):  # a gap: these kernels number tokens without it, so that windows would go wrong
        return None
    for candidate in (None, window) if window else (None,):
        if _is_pattern(mask, attended, candidate):
            return CausalPattern(None if bool(attended.all()) else attended, candidate)
    return None


def _is_pattern(mask: Tensor, attended: Tensor, window: int | None) -> bool:
    batch, queries, keys = mask.shape
    columns = torch.arange(keys, device=mask.device)
    step = max(1, _COMPARED // (batch * keys))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        own = torch.arange(start, stop, device=mask.device)[:, None] + keys - queries
        allowed = columns <= own
        if window is not None:
            allowed &= columns > own - window
        if not torch.equal(mask[:, start:stop], allowed & attended[:, None]):
            return False
    return True


def _flash_takes(version: str | None, query: Tensor, value: Tensor) -> bool:
    """Whether a FlashAttention kernel takes input of this device, dtype and head_dim."""
    size = query.shape[-1]
    sizes = size <= 128 or size == 256 or (size <= 256 and version != "flash_attention_4")
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and sizes and size % 8 == 0 and value.shape[-1] == size


def _flash_attention(
    implementation: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    window: int | None,
    scaling: float,
) -> Tensor | None:
    if not _flash_takes(_flash_version(implementation), query, value):
        return None
    pattern = causal_pattern(mask, query.shape[2], key.shape[2], window)
    if pattern is None:
        return None
    padding = None if pattern.padding is None else pattern.padding.expand(len(query), -1)
    # Not `flash_attention_forward`: it takes the kernel's name from the config, where a view has its own. Without
    # position ids, so that positions with gaps are not taken for several prompts.
    out: Tensor = _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        padding,
        query_length=query.shape[2],
        is_causal=True,
        softmax_scale=scaling,
        sliding_window=pattern.window,
        attn_implementation=implementation,
    )
    return out


def _flex_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    window: int | None,
    scaling: float,
) -> Tensor | None:
    if query.device.type != "cpu" and (query.device.type not in ("cuda", "xpu") or query.shape[-1] < 16):
        return None
    queries, keys = query.shape[2], key.shape[2]
    pattern = causal_pattern(mask, queries, keys, window)
    if pattern is None:
        return None
    if mask is None:
        block_mask = _causal_block_mask(queries, keys, query.device)
    else:
        if pattern.block_mask is None:
            pattern.block_mask = _block_mask(pattern, len(mask), queries, keys, query.device)
        block_mask = pattern.block_mask
    out, _ = flex_attention_forward(module, query, key, value, block_mask, scaling)
    return out


def _block_mask(pattern: CausalPattern, batch: int, queries: int, keys: int, device: torch.device) -> Any:
    function = causal_mask_function
    if pattern.window is not None:
        function = sliding_window_causal_mask_function(pattern.window)
    return flex_attention_mask(
        batch, queries, keys, keys - queries, mask_function=function, attention_mask=pattern.padding, device=device
    )


@lru_cache(maxsize=2)  # one for a prefill, which all layers share, and one for steps of one token
def _causal_block_mask(queries: int, keys: int, device: torch.device) -> Any:
    return _block_mask(CausalPattern(), 1, queries, keys, device)
