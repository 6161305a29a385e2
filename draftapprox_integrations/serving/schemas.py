"""Bodies of requests and answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_LARGEST = (1 << 53) - 1

# Strict: "5" and true are no numbers. Texts are not: strict ones, or such with limits, may hold no lone surrogates.
Count = Annotated[int, Field(ge=1, le=_LARGEST, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
Score = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Word = Annotated[str, Field(json_schema_extra={"minLength": 1})]
Span = Annotated[list[int], Field(min_length=2, max_length=2, description="[start, end) in characters.")]


class _Strict(BaseModel):
    """A body of this package's own: a field that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid")


class _Limits(BaseModel):
    """How much is kept."""

    max_tokens: Count | None = Field(None, description="Most tokens to keep, all passages together.")
    keep_ratio: Share | None = Field(None, description="Share of the tokens to keep; instead of max_tokens.")
    recall: Share | None = Field(None, description="Share of the evidence to keep, as far as the scores tell.")
    min_relevance: Probability | None = Field(None, description="Lowest probability of a kept sentence.")
    top_n: Count | None = Field(None, description="Most passages of which something is kept.")


class CompressRequest(_Strict, _Limits):
    """The arguments of `SpecPC.compress`."""

    passages: list[str] = Field(description="Texts.")
    query: Word = Field(description="The query they were retrieved for; not blank.")
    order: Literal["input", "relevance"] = Field("input", description="Order of the passages in the answer.")
    titles: list[str | None] | None = Field(None, description="Per passage a title or null.")
    on_empty: Literal["drop", "keep_best"] = Field("drop", description="Whether a passage may lose everything.")
    protect: list[Word] = Field([], description="Sentences with one of these stay.")
    retriever_scores: list[Score | None] | None = Field(None, description="Per passage the retriever's score.")
    full: bool = Field(
        False, strict=True, description="Also the originals and the heat, which make up an equal result."
    )


class PassageAnswer(BaseModel):
    """One compressed passage; see `CompressedPassage`."""

    index: int = Field(description="Its index among the passages that were given.")
    title: str | None
    text: str = Field(description="The kept pieces, verbatim and in order.")
    kept: list[Span] = Field(description="Where they stand in the original.")
    score: float | None = Field(description="Of its best sentence; null if everything fitted and nothing was scored.")
    tokens_before: int
    tokens_after: int
    original: str | None = Field(None, description="With full.")
    heat: str | None = Field(
        None, description="With full: base64 of (start uint32, end uint32, score float64) per piece, little-endian."
    )


class CompressAnswer(BaseModel):
    """A `CompressionResult`."""

    query: str
    tokens_before: int
    tokens_after: int
    budget: int
    tokenizer: str
    draft: str
    draft_tokens: int
    timings: dict[str, float] = Field(description="Seconds by step.")
    passages: list[PassageAnswer]


class IngestRequest(_Strict):
    """Passages to read ahead of any query."""

    passages: list[str]
    titles: list[str | None] | None = None


class IngestAnswer(BaseModel):
    """Tokens that were read."""

    tokens: int


class CountRequest(_Strict):
    """Texts whose tokens are counted."""

    texts: list[str]


class CountAnswer(BaseModel):
    """Tokens of each text."""

    tokens: list[int]


class InfoAnswer(BaseModel):
    """What the service runs."""

    version: str
    draft: str = Field(description="Name of the draft model.")
    tokenizer: str = Field(description="Name of the tokenizer that counts.")
    scorer: str
    limits: dict[str, int] = Field(description="Most bytes, passages and tokens of a request.")


class RerankDocument(BaseModel):
    """A document as an object; other fields are ignored."""

    text: str
    title: str | None = None


class RerankRequest(_Limits):
    """A rerank request in the layout of Cohere, Jina or TEI; what a layout has beside these fields is ignored."""

    query: Word = Field(description="Not blank.")
    documents: list[str | RerankDocument] | None = Field(None, description="Documents (Cohere, Jina).")
    texts: list[str] | None = Field(None, description="Documents (TEI); the answer is then a list.")
    model: str | None = Field(None, description="Given back; the service has one model.")
    return_documents: bool | None = Field(None, description="Whether results have their document's text.")
    return_text: bool | None = Field(None, description="The same, for TEI.")


class RankedDocument(BaseModel):
    """The text of a result's document."""

    text: str


class RankedResult(BaseModel):
    """One document's relevance."""

    index: int
    relevance_score: float = Field(description="Probability that it holds evidence.")
    document: RankedDocument | None = None
    text: str | None = Field(None, description="Kept text, where the request limits what is kept.")
    kept: list[Span] | None = Field(None, description="Where it stands in the document.")


class RerankAnswer(BaseModel):
    """Results, the most relevant first."""

    id: str
    model: str
    results: list[RankedResult]
    meta: dict[str, Any]
    usage: dict[str, int]


class RankedText(BaseModel):
    """One text's relevance, in TEI's layout."""

    index: int
    score: float
    text: str | None = None
    kept: list[Span] | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str
    raised: str | None = Field(None, description="Class of the error in draftapprox_integrations.errors.")


class ErrorAnswer(BaseModel):
    """The layout of every error."""

    message: str
    error: ErrorDetail


_MEANINGS = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    408: "The body arrived too slowly.",
    413: "The body is too long, or has too many passages or tokens.",
    422: "The body cannot be used as given.",
    429: "Too many requests wait; Retry-After tells when to come again.",
    500: "The service failed.",
    501: "The service lacks an optional package.",
    503: "The service is stopping.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning} for status, meaning in _MEANINGS.items()
}
