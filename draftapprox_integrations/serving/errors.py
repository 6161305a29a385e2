"""Errors of the service, in the layout that OpenAI's and Cohere's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import (
    DraftApproxError,
    EngineClosedError,
    GenerationTimeoutError,
    InvalidInputError,
    MissingDependencyError,
    UnsupportedModelError,
)

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_STATUS: dict[type[DraftApproxError], int] = {
    InvalidInputError: 422,
    UnsupportedModelError: 422,
    MissingDependencyError: 501,
    EngineClosedError: 503,
    GenerationTimeoutError: 504,
}


class ServiceError(Exception):
    """An answer of the service that is an error.

    Attributes:
        status: The HTTP status.
        message: What happened and what to do about it.
        headers: Further headers, such as Retry-After.
        param: The field of the request that is at fault, as "messages[0].role".
        code: A word for programs, such as "model_not_found"; the status by default.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        self.param, self.code = param, code


def error_content(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error; Cohere's clients read "message", OpenAI's the rest."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "message": message,
        "error": {"message": message, "type": kind, "param": param, "code": code or str(status)},
    }


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as a whole answer."""
    return JSONResponse(error_content(status, message), status, dict(headers or {}))


def status_of(error: DraftApproxError) -> int:
    """The HTTP status of an error raised on purpose."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of a request this layout."""

    async def of_the_service(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        content = error_content(error.status, error.message, error.param, error.code)
        return JSONResponse(content, error.status, dict(error.headers or {}))

    async def of_the_package(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, DraftApproxError)
        return error_response(status_of(error), str(error))

    async def of_the_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return error_response(400 if first["type"] == "json_invalid" else 422, message)

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail), error.headers)

    app.add_exception_handler(ServiceError, of_the_service)
    app.add_exception_handler(DraftApproxError, of_the_package)
    app.add_exception_handler(RequestValidationError, of_the_body)
    app.add_exception_handler(HTTPException, of_http)
