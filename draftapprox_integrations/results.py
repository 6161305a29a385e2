"""What the methods return: plain, frozen, free of tensors where text is concerned."""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class CompressedPassage:
    """One passage, compressed.

    Attributes:
        original: The original text.
        text: The kept pieces, verbatim and in order, joined by the separator.
        kept: Character spans [start, end) of these pieces in `original`.
        score: Score of its best sentence; the higher, the better, comparable across the passages of one call; of scorer
            "fused" the probability that it holds evidence. NaN if nothing was scored because everything fitted.
        tokens_before, tokens_after: Tokens of `original` and of `text`.
        heat: (start, end, score >= 0) of each token the draft read, or of each sentence for a scorer without a draft;
            empty if everything fitted.
        title: The title it was scored with, None without one.
        index: Its index among the passages that were given.
    """

    original: str = field(repr=False)
    text: str
    kept: list[Span]
    score: float
    tokens_before: int
    tokens_after: int
    heat: list[tuple[int, int, float]] = field(default_factory=list, repr=False)
    title: str | None = field(default=None, repr=False)
    index: int = field(default=0, repr=False)

    @property
    def whole(self) -> bool:
        """Whether nothing was dropped."""
        return self.text == self.original


class Renderer(Protocol):
    """Draws a `CompressionResult` as HTML; `SpecPC` uses `report.heatmap.Heatmap`."""

    def page(
        self,
        result: CompressionResult,
        answers: Mapping[str, str] | None = None,
        sources: Sequence[str | None] | None = None,
    ) -> str:
        """A whole HTML document; see `CompressionResult.to_html`."""

    def fragment(self, result: CompressionResult) -> str:
        """The same view for a notebook cell."""


@dataclass(frozen=True)
class CompressionResult:
    """Passages compressed by `SpecPC.compress`.

    Attributes:
        passages: One per input, in the same order; with `order="relevance"` the most relevant first.
        query: The query they were scored for.
        tokens_before, tokens_after: Sums over the passages.
        budget: The most tokens that were allowed.
        tokenizer: Name of the tokenizer that counted.
        timings: Seconds by step: "tokenize", "score" (the draft runs here), "select", "total".
        draft: Name of the draft model.
        draft_tokens: Tokens the draft processed; 0 if everything fitted and it did not run.
        renderer: Draws this result as HTML.
    """

    passages: list[CompressedPassage]
    query: str
    tokens_before: int
    tokens_after: int
    budget: int
    tokenizer: str
    timings: dict[str, float]
    draft: str
    draft_tokens: int
    renderer: Renderer = field(repr=False, compare=False)

    @property
    def keep_ratio(self) -> float:
        """Kept share of the tokens; 1.0 for an empty input."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 1.0

    def to_dict(self, *, full: bool = False) -> dict[str, Any]:
        """The fields, ready for `json.dumps`.

        Args:
            full: Also the passages' originals and heat, from which `from_dict` makes an equal result.
        """
        passages = [_passage_to_dict(passage) for passage in self.passages]
        if full:
            for made, passage in zip(passages, self.passages, strict=True):
                made |= {"original": passage.original, "heat": _pack(passage.heat)}
        return {
            "query": self.query,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "budget": self.budget,
            "tokenizer": self.tokenizer,
            "draft": self.draft,
            "draft_tokens": self.draft_tokens,
            "timings": self.timings,
            "passages": passages,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], renderer: Renderer) -> CompressionResult:
        """The result that `to_dict(full=True)` was made of.

        Args:
            data: What `to_dict` returned, or `json.loads` of its JSON.
            renderer: Draws the result as HTML, such as `report.heatmap.Heatmap()`.

        Raises:
            ValueError: a field is missing, such as the originals, or has no meaning.
        """
        try:
            fields = {name: data[name] for name in _RESULT_FIELDS}
            return cls(passages=[_passage_of_dict(made) for made in data["passages"]], renderer=renderer, **fields)
        except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise ValueError(
                f"not a compression result as to_dict(full=True) writes it ({type(error).__name__}: {error})"
            ) from error

    def to_html(self, *, answers: Mapping[str, str] | None = None, sources: Sequence[str | None] | None = None) -> str:
        """A self-contained page: the passages as a heat map, kept text bright, dropped text faded.

        Args:
            answers: Answers to show above the passages, by their heading: {"Answer": "In 1932."}.
            sources: Per passage where it comes from, such as a file's name, or None; shown beside its title.

        Raises:
            InvalidInputError: another number of sources than passages.
        """
        return self.renderer.page(self, answers, sources)

    def _repr_html_(self) -> str:
        return self.renderer.fragment(self)


_RESULT_FIELDS = tuple(
    field.name for field in dataclass_fields(CompressionResult) if field.name not in ("passages", "renderer")
)


_HEAT = struct.Struct("<IId")  # thousands of pieces: as JSON numbers they would take longer than all else


def _pack(heat: Sequence[tuple[int, int, float]]) -> str:
    """Base64 of each piece's start and end (uint32) and score (float64), little-endian."""
    packed = struct.pack("<" + "IId" * len(heat), *chain.from_iterable(heat))
    return b64encode(packed).decode("ascii")


def _passage_to_dict(passage: CompressedPassage) -> dict[str, Any]:
    return {
        "index": passage.index,
        "title": passage.title,
        "text": passage.text,
        "kept": [list(span) for span in passage.kept],
        "score": None if math.isnan(passage.score) else passage.score,
        "tokens_before": passage.tokens_before,
        "tokens_after": passage.tokens_after,
    }


def _passage_of_dict(made: Mapping[str, Any]) -> CompressedPassage:
    return CompressedPassage(
        original=made["original"],
        text=made["text"],
        kept=[(start, end) for start, end in made["kept"]],
        score=math.nan if made["score"] is None else made["score"],
        tokens_before=made["tokens_before"],
        tokens_after=made["tokens_after"],
        heat=list(_HEAT.iter_unpack(b64decode(made["heat"], validate=True))),
        title=made["title"],
        index=made["index"],
    )


class Selection:
    """Positions that `SpecPC.select` keeps of a batch of prompts.

    Attributes:
        indices: Per row a LongTensor [kept]: ascending positions in that row of the input, padding included, so that
            `input_ids[row, indices[row]]` is the compressed prompt.

    The draft scores rows that fitted whole when `scores` or `lookahead_ids` is first accessed.
    """

    def __init__(
        self,
        indices: list[Tensor],
        tokens: int,
        scored: dict[int, tuple[Tensor, Tensor]],
        score_rows: Callable[[list[int]], dict[int, tuple[Tensor, Tensor]]],
    ):
        self.indices = indices
        self._tokens = tokens
        self._scored = scored
        self._score_rows = score_rows

    @property
    def scores(self) -> Tensor:
        """float32 [batch, tokens]: score of each token before pooling, 0 at padding."""
        return torch.stack([row[0] for row in self._all()])

    @property
    def lookahead_ids(self) -> list[Tensor]:
        """Per row a LongTensor of the tokens the draft wrote after the prompt."""
        return [row[1] for row in self._all()]

    def _all(self) -> list[tuple[Tensor, Tensor]]:
        missing = [row for row in range(len(self.indices)) if row not in self._scored]
        if missing:
            self._scored |= self._score_rows(missing)
        return [self._scored[row] for row in range(len(self.indices))]

    def __repr__(self) -> str:
        return f"Selection(kept={[len(row) for row in self.indices]}, of={self._tokens})"


@dataclass(frozen=True)
class Usage:
    """Token counts of one generation.

    Attributes:
        prompt_tokens: Tokens of the whole prompt.
        completion_tokens: Generated tokens, the final end-of-sequence token included.
        kept_kv: Prompt KV pairs per layer and KV head when decoding starts.
        kept_prompt_tokens: Prompt tokens that SpecPC kept for the target; all of them without SpecPC.
        kept_kv_bytes: Cache bytes of this row when decoding starts; None if no pair was evicted.
    """

    prompt_tokens: int
    completion_tokens: int
    kept_kv: int
    kept_prompt_tokens: int
    kept_kv_bytes: int | None = None

    def to_dict(self) -> dict[str, int | None]:
        """The fields as in OpenAI's "usage": its three counts, then what was kept."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "kept_kv": self.kept_kv,
            "kept_kv_bytes": self.kept_kv_bytes,
            "kept_prompt_tokens": self.kept_prompt_tokens,
        }


@dataclass(frozen=True)
class Generation:
    """A model's answer to one prompt.

    Attributes:
        text: The generated text, without special tokens, cut before a stop string; "" for a model without a tokenizer.
        token_ids: The generated token ids.
        usage: Token counts.
        timings: Seconds: "queued" (waited for a row; missing where the queue was not used), "lookahead" (all draft
            work) and "prefill" of the requests that were prefilled together, "decode", "total" (without "queued").
        finish_reason: "stop" (end of sequence or a stop string), "length", or "cancelled".
        lookahead_ids: The drafted lookahead in the target's vocabulary; empty if nothing was evicted.
    """

    text: str
    token_ids: list[int]
    usage: Usage
    timings: dict[str, float]
    finish_reason: str
    lookahead_ids: list[int] = field(default_factory=list, repr=False)
