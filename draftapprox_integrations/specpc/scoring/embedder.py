"""Scores by a sentence embedder: cosine similarity of query and sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ..text.segmentation import Passage, Sentence
from .bm25 import with_titles


class LangChainEmbeddings(Protocol):
    """The methods of LangChain's `Embeddings` that are called."""

    def embed_documents(self, texts: list[str], /) -> Any:
        """One vector for each text."""

    def embed_query(self, text: str, /) -> Any:
        """The vector of a query."""


class LlamaIndexEmbedding(Protocol):
    """The methods of LlamaIndex's `BaseEmbedding` that are called."""

    def get_text_embedding_batch(self, texts: list[str], /) -> Any:
        """One vector for each text."""

    def get_query_embedding(self, query: str, /) -> Any:
        """The vector of a query."""


Embedder: TypeAlias = "LangChainEmbeddings | LlamaIndexEmbedding | Callable[[list[str]], Any]"


class EmbedderScorer:
    """Scores each sentence, with its passage's title, by its similarity to the query.

    Args:
        embedder: A LangChain `Embeddings`, a LlamaIndex `BaseEmbedding`, or a function from texts to vectors.

    Raises:
        InvalidInputError: it has no way to embed texts.
    """

    def __init__(self, embedder: Embedder):
        self.embedder: Embedder = check_embedder(embedder)

    def score(self, query: str, passages: Sequence[Passage], sentences: Sequence[Sequence[Sentence]]) -> list[Tensor]:
        """Per passage float32 [sentences], in [-1, 1].

        Raises:
            InvalidInputError: the embedder failed, or did not return one vector for each text.
        """
        scores = similarities(self.embedder, query, with_titles(passages, sentences))
        return list(scores.split([len(group) for group in sentences]))


def check_embedder(embedder: Any) -> Any:
    """`embedder`, unchanged.

    Raises:
        InvalidInputError: it can neither embed texts nor score sentences.
    """
    known = any(hasattr(embedder, name) for name in ("embed_documents", "get_text_embedding_batch", "score"))
    if embedder is not None and (isinstance(embedder, type) or not (known or callable(embedder))):
        raise InvalidInputError(
            "embedder must be a LangChain Embeddings, a LlamaIndex BaseEmbedding, a function from a list of texts to "
            f"their vectors, or a Scorer; got {embedder!r}"
        )
    return embedder


def similarities(embedder: Embedder, query: str, texts: Sequence[str]) -> Tensor:
    """Cosine similarity of the query's vector and each text's: float32 [texts].

    Raises:
        InvalidInputError: the embedder failed, or did not return one vector for each text.
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
