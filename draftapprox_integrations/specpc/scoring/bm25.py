"""What the words say: BM25 over sentences (bm25s)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_HAN_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# A word of one letter or digit may be all that tells names apart ("Unit 7", "Hall B"); the s behind an apostrophe says
# nothing. Chinese and Japanese put no spaces between words: there every character counts.
_WORD = rf"(?u)[{_HAN_KANA}]|[^\W{_HAN_KANA}]{{2,}}|(?<!['\u2019])\b[^\W{_HAN_KANA}]\b"


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text in lower case, without the most frequent of English."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs its progress at level DEBUG
    found: Any = bm25s.tokenize(list(texts), token_pattern=_WORD, stopwords="en", return_ids=False, show_progress=False)
    return list(found)


class BM25Index:
    """BM25 over some texts.

    Args:
        texts: Sentences with their passages' titles.
        passages: Which passage each belongs to.
    """

    def __init__(self, texts: Sequence[str], passages: Sequence[int]):
        import bm25s

        self._words = split_words(texts)
        self._passages_with: dict[str, set[int]] = {}
        for words, passage in zip(self._words, passages, strict=True):
            for word in words:
                self._passages_with.setdefault(word, set()).add(passage)
        self._passages = len(set(passages))
        self._index: Any = None
        if self._passages_with:
            self._index = bm25s.BM25()
            self._index.index(self._words, show_progress=False)

    def scores(self, query: str | Sequence[str]) -> Tensor:
        """float32 [texts], for a question or for words of `split_words`; all 0 where none is shared."""
        words = split_words([query])[0] if isinstance(query, str) else list(query)
        if self._index is None or not words:
            return torch.zeros(len(self._words))
        return torch.from_numpy(self._index.get_scores(words)).float()

    def news(self, text: int, query: str) -> list[str]:
        """Words that text number `text` adds to `query` and that stand in few passages: what it names.

        Few are a third of the passages, or two: passages that all tell the same of different things share the words for
        it, and searching for these would find all of them.
        """
        asked, few = set(split_words([query])[0]), max(2, self._passages // 3)
        return [word for word in self._words[text] if word not in asked and len(self._passages_with[word]) <= few]
