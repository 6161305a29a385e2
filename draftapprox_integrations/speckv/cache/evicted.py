"""KV cache layer that can evict a part of its prompt; base class of layers that store the kept pairs separately."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decoding.buffered import BufferedLayer


class EvictedLayer(BufferedLayer):
    """Cache layer that can evict prompt pairs once, by `keep`; `prefill.Evictor` decides when and which.

    New tokens continue at the sequence's true length, evicted tokens included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def keep(self, indices: Tensor, length: int) -> None:
        """Evict all pairs but those at `indices`.

        Args:
            indices: LongTensor [batch, kv_heads, kept], ascending indices into the sequence.
            length: Length that the sequence counts as, in tokens.
        """
        assert self.keys is not None
        assert self.values is not None
        index = indices.to(self.keys.device)[..., None]
        self.keys = self.keys.gather(2, index.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, index.expand(-1, -1, -1, self.values.shape[-1]))
        self.dropped = length - indices.shape[-1]

    def get_seq_length(self) -> int:
        """Number of tokens in the sequence so far, evicted ones included."""
        return int(super().get_seq_length()) + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(width, offset) of the attention mask: kept pairs and new tokens, which end where the sequence ends."""
        return self.get_seq_length() + query_length - self.dropped, self.dropped


class KeptPromptLayer(BufferedLayer):
    """Cache layer whose `keys` and `values` hold tokens after the prompt; the prompt's kept pairs are stored apart."""

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; prompt tokens cannot be removed."""
        if self.keys is not None and abs(tokens_to_remove) > self.keys.shape[2]:
            raise ValueError(f"only the {self.keys.shape[2]} tokens after the prompt can be removed from the cache")
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows of the batch, as `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        assert self.keys is not None
        self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Not supported: evicted pairs cannot be restored."""
        raise NotImplementedError("a cache with dropped pairs cannot be used again; prefill a new one")
