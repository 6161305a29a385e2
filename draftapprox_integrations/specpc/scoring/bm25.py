"""Lexical scores: BM25 over sentences (bm25s)."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import regex
import torch
from torch import Tensor

from ..text.graphemes import cluster_spans
from ..text.segmentation import Passage, Sentence, headers_of

# Scripts written without spaces: there every character and every pair of neighbours is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}"
_PART = rf"[[\p{{L}}\p{{N}}\p{{M}}\p{{Pc}}\u200c\u200d]--[{_UNSPACED}]]"
# A word of one letter or digit may be all that tells names apart ("Unit 7", "Hall B"); the s behind an apostrophe means
# nothing.
_WORD = regex.compile(
    rf"(?P<run>[{_UNSPACED}\p{{M}}]*[{_UNSPACED}][{_UNSPACED}\p{{M}}\u30fc]*+)|{_PART}{{2,}}+|(?<!['\u2019]){_PART}",
    regex.V1,
)
# Vowel signs that Arabic and Hebrew readers leave out, and joiners that nobody sees.
_UNWRITTEN = regex.compile(r"[\u0591-\u05bd\u0640\u064b-\u065f\u0670\u200c\u200d\u00ad]")


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """Words of each text in lower case (NFKC), without English stop words, for every script."""
    from bm25s.stopwords import STOPWORDS_EN

    return [[word for word in _words(text) if word not in STOPWORDS_EN] for text in texts]


def _words(text: str) -> Iterator[str]:
    text = _UNWRITTEN.sub("", unicodedata.normalize("NFKC", text).lower())
    for found in _WORD.finditer(text):
        word = found[0]
        if found["run"] is None:
            yield word
            continue
        letters = [word[start:end] for start, end in cluster_spans(word)]
        yield from letters
        yield from (first + second for first, second in itertools.pairwise(letters))


class BM25Index:
    """BM25 over texts that belong to passages.

    Args:
        texts: The texts, or their words as of `split_words`.
        passages: Per text the index of its passage.

    Attributes:
        words: Per text its words.
    """

    def __init__(self, texts: Sequence[str] | Sequence[list[str]], passages: Sequence[int]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs its progress at level DEBUG
        self.words = [split_words([text])[0] if isinstance(text, str) else text for text in texts]
        self._passages_with: dict[str, set[int]] = {}
        for words, passage in zip(self.words, passages, strict=True):
            for word in words:
                self._passages_with.setdefault(word, set()).add(passage)
        self._passages = len(set(passages))
        self._index: Any = None
        if self._passages_with:
            self._index = bm25s.BM25()
            self._index.index(self.words, show_progress=False)

    def scores(self, query: str | Sequence[str]) -> Tensor:
        """float32 [texts], for a query or for words of `split_words`; all 0 where no word is shared."""
        words = split_words([query])[0] if isinstance(query, str) else list(query)
        if self._index is None or not words:
            return torch.zeros(len(self.words))
        return torch.from_numpy(self._index.get_scores(words)).float()

    def new_terms(self, text: int, query: str) -> list[str]:
        """Words of text number `text` that are not in `query` and are rare across passages.

        Rare means in at most a third of the passages, or in two. Passages that describe different things in the same
        words share these words, and a search for them would find every passage.
        """
        asked, few = set(split_words([query])[0]), max(2, self._passages // 3)
        return [word for word in self.words[text] if word not in asked and len(self._passages_with[word]) <= few]


class BM25Scorer:
    """Scores each sentence, with its passage's title, by BM25."""

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
        """Per passage float32 [sentences], >= 0."""
        scores = BM25Index(with_titles(passages, sentences), owners_of(sentences)).scores(query)
        return list(scores.split([len(group) for group in sentences]))


def with_titles(passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[str]:
    """The text of every sentence, after its passage's title and the headings, headers and keys that speak for it."""
    texts = []
    for passage, group in zip(passages, sentences, strict=True):
        title = [passage.title] if passage.title else []
        for sentence, headers in zip(group, headers_of(group), strict=True):
            texts.append("\n".join([*title, *(group[index].text for index in reversed(headers)), sentence.text]))
    return texts


def owners_of(sentences: Sequence[Sequence[Sentence]]) -> list[int]:
    """Index of the passage of every sentence."""
    return [index for index, group in enumerate(sentences) for _ in group]
