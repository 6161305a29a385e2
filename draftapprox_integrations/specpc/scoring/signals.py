"""Signals: all that is known of each sentence, as numbers. A relevance model makes one probability of them.

Most are standardized over the sentences of a query, because the scale of attention, BM25 and similarity says little
from one query to the next. The first look sees every sentence by itself. The second look also knows which sentence the
first one found best: its new terms (the person who wrote the song) often stand in the next piece of evidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import regex
import torch
from torch import Tensor

from ...results import Span
from ..text.segmentation import Passage, Sentence, assign_tokens, headers_of
from .bm25 import BM25Index, owners_of, split_words
from .reduction import PRIOR_TOKENS
from .scales import standardize, standardize_known, standardize_log

# Words by which questions differ in what they ask for, and how many sentences that takes.
_QUESTION_WORDS = ("who", "when", "where", "how many", "how", "which", "what", "why", "(?:both|same|or|than|between)")
_PATTERNS = [regex.compile(rf"\b{words}\b") for words in _QUESTION_WORDS]

ATTENTION = ("mean", "highest", "passage", "heads_mean", "heads_passage")
WORDS = ("bm25", "bm25_raw", "bm25_passage", "coverage", "coverage_passage", "title", "title_share")
PLACE = ("first", "position", "length", "retriever")
SEMANTIC = ("similarity", "similarity_passage")
ABSOLUTE = ("cosine", "cosine_passage")
SECOND = (
    "score", "best", "best_passage", "rank", "rank_passage", "below_best",
    "terms", "terms_passage", "terms_title", "gap", "top", "lead",
)  # fmt: skip
# Signals of different kinds, whose ranks, peaks and agreement show which of them to trust for a question.
_WITNESSES = ("heads_mean", "bm25", "similarity")
QUESTION = (*(f"asks {words}" for words in _QUESTION_WORDS), "words")


def second_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of a second look's own signals, beside a first look's `names`."""
    seen = [name for name in _WITNESSES if name in names]
    of_each = [f"{what} of {name}" for what in ("highest", "next", "agreement") for name in seen]
    pairs = [f"{one} agrees with {other}" for i, one in enumerate(seen) for other in seen[:i]]
    return (*SECOND, *(f"rank of {name}" for name in seen), *of_each, *pairs, *QUESTION)


class Signals:
    """The signals of one query's sentences.

    Args:
        query: The query.
        passages, sentences: As for `Scorer.score`.
        heads: Per passage float32 [heads, tokens], a draft's attention.
        spans: Per passage the character spans of these tokens.
        similarity: float32 [all sentences], of an embedder or another scorer; None without one.
        is_cosine: Whether `similarity` has the scale of a cosine.
    """

    def __init__(
        self,
        query: str,
        passages: Sequence[Passage],
        sentences: Sequence[Sequence[Sentence]],
        heads: Sequence[Tensor],
        spans: Sequence[Sequence[Span]],
        similarity: Tensor | None = None,
        is_cosine: bool = False,
    ):
        self.query, self.passages = query, len(passages)
        self.owners = torch.tensor(owners_of(sentences), dtype=torch.long)
        self._similarity, self._is_cosine = similarity, is_cosine
        self._words(passages, sentences)
        self.first = self._first(passages, sentences, _attention(heads, spans, sentences))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `first`."""
        semantic = () if self._similarity is None else SEMANTIC + (ABSOLUTE if self._is_cosine else ())
        return ATTENTION + WORDS + PLACE + semantic

    @property
    def second_names(self) -> tuple[str, ...]:
        """Names of the columns of `second`."""
        return second_names(self.names)

    def _words(self, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> None:
        """Index the words of sentences, with what speaks for them, and of passages."""
        self._title_words = split_words([passage.title or "" for passage in passages])
        of_sentences, of_passages = [], []
        for title, group in zip(self._title_words, sentences, strict=True):
            own = split_words([sentence.text for sentence in group])
            for words, headers in zip(own, headers_of(group), strict=True):
                of_sentences.append([*title, *(word for i in reversed(headers) for word in own[i]), *words])
            of_passages.append([*title, *(word for words in own for word in words)])
        self._index = BM25Index(of_sentences, self.owners.tolist())
        self._passage_index = BM25Index(of_passages, range(len(of_passages)))
        self._asked = set(split_words([self.query])[0])

    def _first(
        self, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]], attention: Sequence[Tensor]
    ) -> Tensor:
        """float32 [all sentences, names]."""
        owners = self.owners
        bm25 = self._index.scores(self.query)
        weights = self._term_weights()
        titles = [set(words) for words in self._title_words]
        columns = [
            *attention,
            standardize(bm25.log1p()),
            standardize(bm25),
            standardize(self._passage_index.scores(self.query).log1p())[owners],
            _shares(weights, self._index.words),
            _shares(weights, self._passage_index.words)[owners],
            _shares(weights, self._title_words)[owners],
            torch.tensor([len(words & self._asked) / max(len(words), 1) for words in titles])[owners],
            *_places(sentences),
            standardize_known([passage.retriever_score for passage in passages])[owners],
        ]
        if self._similarity is not None:
            of_passages = self._highest(self._similarity)
            columns += [standardize(self._similarity), standardize(of_passages)[owners]]
            if self._is_cosine:
                columns += [self._similarity, of_passages[owners]]
        return torch.stack(columns, dim=1)

    def second(self, scores: Tensor) -> Tensor:
        """Signals that follow from the scores of a first look.

        Args:
            scores: float32 [all sentences].

        Returns:
            float32 [all sentences, `second_names`].
        """
        owners, count = self.owners, len(scores)
        scores = standardize(scores)
        of_passages = self._highest(scores)
        ordered = of_passages.sort(descending=True).values
        best = int(scores.argmax())
        is_best = torch.zeros(count)
        is_best[best] = 1
        columns = [
            scores,
            is_best,
            (owners == owners[best]).float(),
            _ranks(scores).log1p(),
            _ranks(of_passages).log1p()[owners],
            scores - of_passages[owners],
            *self._terms(best),
        ]
        ranks, witnesses = self._agreement(int(owners[best]))
        second = ordered[1] if len(ordered) > 1 else ordered[0]
        spread = [float(ordered[0] - second), float(ordered[0]), float(ordered[:3].mean() - ordered.mean())]
        query = self.query.lower()
        asks = [float(bool(pattern.search(query))) for pattern in _PATTERNS]
        constants = [*witnesses, *asks, min(len(query.split()), 40) / 20]
        lead = torch.tensor(spread).expand(count, -1)
        return torch.cat([torch.stack(columns, 1), lead, ranks, torch.tensor(constants).expand(count, -1)], dim=1)

    def _agreement(self, passage: int) -> tuple[Tensor, list[float]]:
        """Log ranks of the sentences by each witness; their highest values, and whether their best passages agree."""
        names = self.names
        seen = [self.first[:, names.index(name)].contiguous() for name in _WITNESSES if name in names]
        best = []  # passages with the highest value, all of them where values are equal, in whatever order they come
        for one in seen:
            of_passages = self._highest(one)
            best.append(of_passages >= of_passages.max())
        ordered = [one.sort(descending=True).values for one in seen]
        pairs = [float((best[i] & best[j]).any()) for i in range(len(seen)) for j in range(i)]
        highest = [float(one[0]) for one in ordered]
        following = [float(one[min(1, len(one) - 1)]) for one in ordered]
        ranks = torch.stack([_ranks(one).log1p() for one in seen], dim=1)
        return ranks, [*highest, *following, *(float(one[passage]) for one in best), *pairs]

    def _terms(self, index: int) -> list[Tensor]:
        """How sentences, passages and titles match the new terms of sentence `index`; 0 for itself and its passage."""
        terms = self._index.new_terms(index, self.query)
        found = standardize(self._index.scores(terms).log1p())
        found[[words == self._index.words[index] for words in self._index.words]] = 0.0  # it finds itself
        of_passages = standardize(self._passage_index.scores(terms).log1p())
        wanted = set(terms)
        of_titles = torch.tensor([len(wanted & set(words)) / max(len(set(words)), 1) for words in self._title_words])
        for values in (of_passages, of_titles):
            values[self.owners[index]] = 0.0
        return [found, of_passages[self.owners], of_titles[self.owners]]

    def _highest(self, values: Tensor) -> Tensor:
        """The highest of the sentences' values per passage, float32 [passages]; the lowest of all for none."""
        lowest = values.min().expand(self.passages)
        return lowest.scatter_reduce(0, self.owners, values, reduce="amax", include_self=True)

    def _term_weights(self) -> dict[str, float]:
        """The share of each word of the query in its information (inverse document frequency); the sum is 1."""
        found = Counter(word for words in self._index.words for word in self._asked.intersection(words))
        count = len(self._index.words)
        weights = {w: math.log(1 + (count - found[w] + 0.5) / (found[w] + 0.5)) for w in sorted(self._asked)}
        total = sum(weights.values()) or 1.0
        return {word: weight / total for word, weight in weights.items()}


def _attention(
    heads: Sequence[Tensor], spans: Sequence[Sequence[Span]], sentences: Sequence[Sequence[Sentence]]
) -> list[Tensor]:
    """The columns `ATTENTION`, float32 [all sentences] each."""
    means, highest, of_passages, owners = [], [], [], owners_of(sentences)
    for rows, tokens, group in zip(heads, spans, sentences, strict=True):
        owner = torch.tensor(assign_tokens([(s.start, s.end) for s in group], tokens), dtype=torch.long)
        inside = owner >= 0
        owner, values = owner[inside], rows[:, inside]
        average = rows.mean(dim=1, keepdim=True) if rows.shape[1] else torch.zeros(len(rows), 1)
        sums = torch.zeros(len(rows), len(group)).index_add(1, owner, values)
        counts = torch.bincount(owner, minlength=len(group))
        means.append((sums + PRIOR_TOKENS * average) / (counts + PRIOR_TOKENS))
        top = torch.zeros(len(rows), len(group))
        highest.append(top.scatter_reduce(1, owner.expand(len(rows), -1), values, reduce="amax", include_self=False))
        of_passages.append(average)
    mean, top, passage = torch.cat(means, 1), torch.cat(highest, 1), torch.cat(of_passages, 1)

    def each(values: Tensor) -> Tensor:
        return standardize(torch.stack([standardize_log(row) for row in values]).mean(dim=0))

    return [
        standardize_log(mean.mean(dim=0)),
        standardize_log(top.mean(dim=0)),
        standardize_log(passage.mean(dim=0))[owners],
        each(mean),
        each(passage)[owners],
    ]


def _places(sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
    """Whether a sentence is its passage's first, log of its position, log of its characters."""
    position = torch.tensor([float(i) for group in sentences for i in range(len(group))])
    length = torch.tensor([float(len(sentence.text)) for group in sentences for sentence in group])
    return [(position == 0).float(), position.log1p(), (length / 80).clamp(min=0.05).log()]


def _shares(weights: dict[str, float], texts: Sequence[list[str]]) -> Tensor:
    """Per text, as words, the weight of the query's words in it."""
    asked = weights.keys()
    return torch.tensor([sum(weights[word] for word in sorted(asked & set(words))) for words in texts])


def _ranks(values: Tensor) -> Tensor:
    """Per value how many are higher, float32."""
    return (len(values) - torch.searchsorted(values.sort().values, values, right=True)).float()
