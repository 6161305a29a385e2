"""One score for each sentence, from all that is known about it.

The draft's attention knows what a question means but is easily lost among passages that look alike; the words know
names and numbers but no meaning; an embedder and the retriever know something of both. Each is put on a common scale,
and they are added. Then a second look: what the best sentence names beyond the question (the person who wrote the song)
is searched for too, because the next piece of evidence stands there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ..text.packing import Unit
from .bm25 import BM25Index

# What the second look and the retriever's scores weigh beside the others' 1 (docs/LOG.md).
SECOND_LOOK = 0.8
RETRIEVER = 0.5


class LangChainEmbeddings(Protocol):
    """LangChain's `Embeddings`, as far as it is needed."""

    def embed_documents(self, texts: list[str], /) -> Any:
        """Vectors of texts."""

    def embed_query(self, text: str, /) -> Any:
        """The vector of a question."""


class LlamaIndexEmbedding(Protocol):
    """LlamaIndex's `BaseEmbedding`, as far as it is needed."""

    def get_text_embedding_batch(self, texts: list[str], /) -> Any:
        """Vectors of texts."""

    def get_query_embedding(self, query: str, /) -> Any:
        """The vector of a question."""


Embedder: TypeAlias = "LangChainEmbeddings | LlamaIndexEmbedding | Callable[[list[str]], Any]"


def fuse(
    query: str,
    texts: Sequence[str],
    attention: Tensor,
    passages: Sequence[int],
    retriever_scores: Sequence[float | None] | None = None,
    embedder: Embedder | None = None,
) -> Tensor:
    """float32 [sentences]: the higher, the more wanted.

    Args:
        query: The question.
        texts: From `titled`.
        attention: float32 [sentences], how much the draft looks at each.
        passages: The passage of each sentence.
        retriever_scores: Per passage what the retriever said, None where it said nothing.
        embedder: Gives vectors of texts.

    Raises:
        InvalidInputError: the embedder failed, or gave something else than one vector for each text.
    """
    words = BM25Index(texts, passages)
    parts = [standardized(attention.clamp(min=1e-9).log()), standardized(words.scores(query))]
    if embedder is not None:
        parts.append(standardized(similarities(embedder, query, texts)))
    total = torch.stack(parts).sum(dim=0)
    if retriever_scores is not None:
        known = [score for score in retriever_scores if score is not None and math.isfinite(score)]
        if known:
            lowest = min(known)
            filled = [
                lowest if score is None or not math.isfinite(score) else float(score) for score in retriever_scores
            ]
            total = total + RETRIEVER * standardized(torch.tensor(filled))[torch.tensor(passages)]
    if len(texts) > 1:
        best = int(total.argmax())
        again = standardized(words.scores(words.news(best, query)))
        again[[text == texts[best] for text in texts]] = 0.0  # it finds itself, which says nothing
        total = total + SECOND_LOOK * again
    return total


def check_embedder(embedder: Any) -> Any:
    """The embedder, if it is one.

    Raises:
        InvalidInputError: it can give no vectors.
    """
    known = any(hasattr(embedder, name) for name in ("embed_documents", "get_text_embedding_batch"))
    if embedder is not None and (isinstance(embedder, type) or not (known or callable(embedder))):
        raise InvalidInputError(
            "embedder must be a LangChain Embeddings, a LlamaIndex BaseEmbedding, or a function from a list of texts "
            f"to their vectors; got {embedder!r}"
        )
    return embedder


def titled(units: Sequence[Unit], passages: Sequence[str], titles: Sequence[str | None]) -> list[str]:
    """Of each sentence its passage's title, if any, and itself."""
    texts = []
    for unit in units:
        title, text = titles[unit.passage], passages[unit.passage][unit.start : unit.end]
        texts.append(f"{title}\n{text}" if title else text)
    return texts


def standardized(values: Tensor) -> Tensor:
    """Mean 0, standard deviation 1; all 0 where they are all alike."""
    if len(values) < 2:
        return torch.zeros_like(values)
    values = values - values.mean()
    spread = values.std()
    return values / spread if float(spread) > 1e-9 else torch.zeros_like(values)


def similarities(embedder: Embedder, query: str, texts: Sequence[str]) -> Tensor:
    """float32 [texts]: cosine of the vectors of query and text.

    Raises:
        InvalidInputError: the embedder failed, or gave something else than one vector for each text.
    """
    embed: Any = embedder
    name = type(embedder).__name__
    try:
        if hasattr(embed, "embed_documents"):
            found, asked = embed.embed_documents(list(texts)), embed.embed_query(query)
        elif hasattr(embed, "get_text_embedding_batch"):
            found, asked = embed.get_text_embedding_batch(list(texts)), embed.get_query_embedding(query)
        else:
            asked, *found = embed([query, *texts])
    except Exception as error:  # somebody else's code
        raise InvalidInputError(f"the embedder {name} failed: {type(error).__name__}: {error}") from error
    try:
        vectors = torch.stack([torch.as_tensor(vector, dtype=torch.float32) for vector in found])
        question = torch.as_tensor(asked, dtype=torch.float32)
        if vectors.shape != (len(texts), len(question)):
            raise ValueError(f"{len(texts)} texts gave vectors of shape {list(vectors.shape)}")
        if not (torch.isfinite(vectors).all() and torch.isfinite(question).all()):
            raise ValueError("NaN or infinite numbers are among them")
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InvalidInputError(
            f"the embedder {name} must return one vector of finite numbers for each text ({error})"
        ) from error
    return torch.nn.functional.cosine_similarity(vectors, question[None], dim=-1)
