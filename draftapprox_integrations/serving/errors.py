"""Errors of the service, in the layout that OpenAI's and Cohere's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..errors import (
    DraftApproxError,
    EngineClosedError,
    GenerationTimeoutError,
    InvalidInputError,
    MissingDependencyError,
    UnsupportedModelError,
)
from .encoding import JSONAnswer

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


def error_content(
    status: int, message: str, *, param: str | None = None, code: str | None = None, raised: str | None = None
) -> dict[str, Any]:
    """The body of an error; Cohere's clients read "message", OpenAI's the rest, this package's "raised": the class."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code or str(status)}
    return {"message": message, "error": error if raised is None else error | {"raised": raised}}


def error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
    raised: str | None = None,
) -> JSONAnswer:
    """An error as a whole answer."""
    content = error_content(status, message, param=param, code=code, raised=raised)
    return JSONAnswer(content, status, dict(headers or {}))


def response_of(error: ServiceError) -> JSONAnswer:
    """The answer that an error is."""
    return error_response(error.status, error.message, error.headers, param=error.param, code=error.code)


def status_of(error: DraftApproxError) -> int:
    """The HTTP status of an error raised on purpose."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of a request this layout."""

    async def of_the_service(_: Request, error: Exception) -> JSONAnswer:
        assert isinstance(error, ServiceError)
        return response_of(error)

    async def of_the_package(_: Request, error: Exception) -> JSONAnswer:
        assert isinstance(error, DraftApproxError)
        return error_response(status_of(error), str(error), raised=type(error).__name__)

    async def of_the_body(_: Request, error: Exception) -> JSONAnswer:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
        if error.body is None or isinstance(error.body, bytes):
            return error_response(422, "send a JSON object as the body, with the header Content-Type: application/json")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return error_response(422, f"{where}: {first['msg']}" if where else str(first["msg"]))

    async def of_http(_: Request, error: Exception) -> JSONAnswer:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail), error.headers)

    app.add_exception_handler(ServiceError, of_the_service)
    app.add_exception_handler(DraftApproxError, of_the_package)
    app.add_exception_handler(RequestValidationError, of_the_body)
    app.add_exception_handler(HTTPException, of_http)
