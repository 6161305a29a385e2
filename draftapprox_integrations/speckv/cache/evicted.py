"""Cache layers of a prompt of which some KV pairs were dropped."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class EvictedLayer(DynamicLayer):
    """KV pairs of a sequence of which some were dropped; new tokens go on at the sequence's true length."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dropped = 0

    def keep(self, positions: Tensor, length: int) -> None:
        """Keep only `positions` [batch, kv_heads, kept] of a sequence that counts as `length` tokens long."""
        assert self.keys is not None
        assert self.values is not None
        index = positions.to(self.keys.device)[..., None]
        self.keys = self.keys.gather(2, index.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, index.expand(-1, -1, -1, self.values.shape[-1]))
        self.dropped = length - positions.shape[-1]

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones included."""
        return int(super().get_seq_length()) + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What the mask must cover: the kept pairs and the new ones, which end where the sequence ends."""
        return self.get_seq_length() + query_length - self.dropped, self.dropped


class KeptPromptLayer(DynamicLayer):
    """A layer whose `keys` and `values` are those of tokens after the prompt; what it kept of the prompt is apart."""

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; none of the prompt's."""
        if self.keys is not None and abs(tokens_to_remove) > self.keys.shape[2]:
            raise ValueError(f"only the {self.keys.shape[2]} tokens after the prompt can be removed from the cache")
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        assert self.keys is not None
        self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Not possible: what was dropped cannot come back."""
        raise NotImplementedError("a cache with dropped pairs cannot be used again; prefill a new one")
