"""Routes for rerank clients: the layouts of Cohere, Jina and TEI (Text Embeddings Inference)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request

from ..results import CompressedPassage, CompressionResult
from ..specpc.budget import Budget
from .compression import check_number, check_size
from .encoding import JSONAnswer, encode_json
from .errors import ServiceError
from .records import record_of
from .schemas import RankedText, RerankAnswer, RerankRequest
from .service import Service, service_of

router = APIRouter(tags=["rerank"])


@router.post("/v1/rerank", response_model=RerankAnswer | list[RankedText])
@router.post("/v2/rerank", response_model=RerankAnswer | list[RankedText])
@router.post("/rerank", response_model=RerankAnswer | list[RankedText])
async def rerank(body: RerankRequest, request: Request) -> JSONAnswer:
    """Sort documents by the probability that they hold evidence for the query.

    With max_tokens, keep_ratio, recall or min_relevance each result also has what is kept of its document.
    """
    service, record = service_of(request), record_of(request)
    texts, titles = _documents(body)
    record.text = {"query": body.query, "documents": texts}
    limits = Budget(
        max_tokens=body.max_tokens, keep_ratio=body.keep_ratio, recall=body.recall, min_relevance=body.min_relevance
    )
    shortens = limits != Budget()

    def work() -> tuple[CompressionResult, bytes]:
        result = _compress(service, body, limits if shortens else Budget(keep_ratio=1.0), texts, titles)
        passages = result.passages[: body.top_n]
        if body.texts is not None:
            return result, encode_json([_tei(passage, body, shortens) for passage in passages])
        version = "2" if request.url.path.startswith("/v2/") else "1"
        answer = {
            "id": str(uuid4()),
            "model": body.model or result.draft,
            "results": [_cohere(passage, body, shortens) for passage in passages],
            "meta": {"api_version": {"version": version}},
            "usage": {"total_tokens": result.tokens_before},
        }
        return result, encode_json(answer)

    check_number(service, texts)
    result, content = await service.workers.run(request, work)
    record.tokens = result.tokens_before, result.tokens_after
    return JSONAnswer(content)


def _documents(body: RerankRequest) -> tuple[list[str], list[str | None] | None]:
    """Texts and titles.

    Raises:
        ServiceError: 422: neither documents nor texts, or both.
    """
    if (body.documents is None) == (body.texts is None):
        raise ServiceError(422, "give documents (Cohere, Jina), or texts (TEI)")
    if body.texts is not None:
        return body.texts, None
    documents = body.documents or []
    texts = [document if isinstance(document, str) else document.text for document in documents]
    return texts, [None if isinstance(document, str) else document.title for document in documents]


def _compress(
    service: Service, body: RerankRequest, limits: Budget, texts: list[str], titles: list[str | None] | None
) -> CompressionResult:
    """The documents, the most relevant first; all of their text, unless `limits` shorten it."""
    check_size(service, texts)
    return service.compressor.compress(
        texts,
        body.query,
        max_tokens=limits.max_tokens,
        keep_ratio=limits.keep_ratio,
        recall=limits.recall,
        min_relevance=limits.min_relevance,
        top_n=body.top_n,
        order="relevance",
        titles=titles,
    )


def _cohere(passage: CompressedPassage, body: RerankRequest, shortens: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"index": passage.index, "relevance_score": passage.score}
    if body.return_documents:
        made["document"] = {"text": passage.original}
    return made | (_kept(passage) if shortens else {})


def _tei(passage: CompressedPassage, body: RerankRequest, shortens: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"index": passage.index, "score": passage.score}
    if body.return_text:
        made["text"] = passage.original
    return made | (_kept(passage) if shortens else {})


def _kept(passage: CompressedPassage) -> dict[str, Any]:
    return {"text": passage.text, "kept": [list(span) for span in passage.kept]}
