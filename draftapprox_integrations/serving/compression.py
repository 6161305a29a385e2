"""Routes of `SpecPC`: compress, ingest, count tokens, and what the service runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request

from .. import __version__
from ..models.references import as_reference, display_name
from ..results import CompressionResult
from .encoding import JSONAnswer, encode_json
from .errors import ServiceError
from .records import record_of
from .schemas import (
    CompressAnswer,
    CompressRequest,
    CountAnswer,
    CountRequest,
    InfoAnswer,
    IngestAnswer,
    IngestRequest,
)
from .service import Service, service_of

router = APIRouter(tags=["SpecPC"])


@router.post("/v1/compress", response_model=CompressAnswer)
async def compress(body: CompressRequest, request: Request) -> JSONAnswer:
    """Keep the sentences of some passages that matter for a query."""
    service, record = service_of(request), record_of(request)
    record.text = {"query": body.query, "passages": body.passages}
    arguments = body.model_dump(exclude={"full"})

    def work() -> tuple[CompressionResult, bytes]:
        check_size(service, body.passages)
        result = service.compressor.compress(**arguments)
        return result, encode_json(result.to_dict(full=body.full))

    check_number(service, body.passages)
    result, content = await service.workers.run(request, work)
    record.tokens = result.tokens_before, result.tokens_after
    return JSONAnswer(content)


@router.post("/v1/ingest", response_model=IngestAnswer)
async def ingest(body: IngestRequest, request: Request) -> JSONAnswer:
    """Read passages ahead of any query, so that queries find their keys in the store."""
    service = service_of(request)
    record_of(request).text = {"passages": body.passages}

    def work() -> int:
        check_size(service, body.passages)
        return service.compressor.ingest(body.passages, body.titles)

    check_number(service, body.passages)
    return JSONAnswer({"tokens": await service.workers.run(request, work)})


@router.post("/v1/count_tokens", response_model=CountAnswer)
async def count_tokens(body: CountRequest, request: Request) -> JSONAnswer:
    """Count tokens as budgets do."""
    service = service_of(request)
    record_of(request).text = {"texts": body.texts}
    check_number(service, body.texts)
    work = partial(service.compressor.count_tokens, body.texts)
    return JSONAnswer({"tokens": await service.workers.run(request, work)})


@router.get("/v1/info", response_model=InfoAnswer)
async def info(request: Request) -> JSONAnswer:
    """Names of the draft, tokenizer and scorer, and the limits of a request."""
    service = service_of(request)
    names = service.compressor.compress([], "names")  # a result tells who counted
    limits = ("max_body_bytes", "max_passages", "max_input_tokens")
    return JSONAnswer(
        {
            "version": __version__,
            "draft": names.draft,
            "tokenizer": names.tokenizer,
            "scorer": display_name(as_reference(service.compressor.scorer_spec)),
            "limits": {name: getattr(service.settings, name) for name in limits},
        }
    )


def check_number(service: Service, texts: Sequence[object]) -> None:
    """Raises:
    ServiceError: 413: there are too many texts.
    """
    most = service.settings.max_passages
    if len(texts) > most:
        raise ServiceError(413, f"{len(texts)} texts are too many: this service takes {most} at a time")


def check_size(service: Service, texts: Sequence[str]) -> None:
    """Count tokens where there may be too many; run it in a worker.

    Raises:
        ServiceError: 413: there are too many tokens.
    """
    most = service.settings.max_input_tokens
    if sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts) <= most:
        return
    tokens = sum(service.compressor.count_tokens(texts))
    if tokens > most:
        raise ServiceError(413, f"{tokens} tokens are too many: this service takes {most} at a time")
