"""Lexical scores: BM25 over sentences (bm25s)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..text.segmentation import Passage, Sentence

_HAN_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# A word of one letter or digit may be all that tells names apart ("Unit 7", "Hall B"); the s behind an apostrophe means
# nothing. Chinese and Japanese are written without spaces: there every character is a word.
_WORD = rf"(?u)[{_HAN_KANA}]|[^\W{_HAN_KANA}]{{2,}}|(?<!['\u2019])\b[^\W{_HAN_KANA}]\b"


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """Words of each text in lower case, without English stop words."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs its progress at level DEBUG
    words: Any = bm25s.tokenize(list(texts), token_pattern=_WORD, stopwords="en", return_ids=False, show_progress=False)
    return list(words)


class BM25Index:
    """BM25 over texts that belong to passages.

    Args:
        texts: The texts.
        passages: Per text the index of its passage.
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
        """float32 [texts], for a query or for words of `split_words`; all 0 where no word is shared."""
        words = split_words([query])[0] if isinstance(query, str) else list(query)
        if self._index is None or not words:
            return torch.zeros(len(self._words))
        return torch.from_numpy(self._index.get_scores(words)).float()

    def new_terms(self, text: int, query: str) -> list[str]:
        """Words of text number `text` that are not in `query` and are rare across passages.

        Rare means in at most a third of the passages, or in two. Passages that describe different things in the same
        words share these words, and a search for them would find every passage.
        """
        asked, few = set(split_words([query])[0]), max(2, self._passages // 3)
        return [word for word in self._words[text] if word not in asked and len(self._passages_with[word]) <= few]


class BM25Scorer:
    """Scores each sentence, with its passage's title, by BM25."""

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
        """Per passage float32 [sentences], >= 0."""
        scores = BM25Index(with_titles(passages, sentences), owners_of(sentences)).scores(query)
        return list(scores.split([len(group) for group in sentences]))


def with_titles(passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[str]:
    """The text of every sentence, after its passage's title where there is one."""
    texts = []
    for passage, group in zip(passages, sentences, strict=True):
        texts += [f"{passage.title}\n{sentence.text}" if passage.title else sentence.text for sentence in group]
    return texts


def owners_of(sentences: Sequence[Sequence[Sentence]]) -> list[int]:
    """Index of the passage of every sentence."""
    return [index for index, group in enumerate(sentences) for _ in group]
