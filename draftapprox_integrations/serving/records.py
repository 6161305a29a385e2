"""What is known about one request, and its line in the log."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.requests import HTTPConnection
from starlette.types import Scope

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_KEY = "draftapprox_record"


@dataclass
class RequestRecord:
    """One request, for its log line and the metrics.

    Attributes:
        id: The client's X-Request-ID, or a new one.
        method: The HTTP method.
        started: Seconds of the monotonic clock.
        status: Status of the answer; 0 before it begins.
        tokens: Tokens before and after compression, set by who compresses.
        text: What the log shows of the request with `ServiceSettings.log_text`, and never otherwise.
        error: Class and place of an error that nobody expected.
    """

    id: str
    method: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    tokens: tuple[int, int] | None = None
    text: dict[str, Any] | None = None
    error: str | None = None

    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started


def start_record(scope: Scope, request_id: str) -> RequestRecord:
    """Make the record of a request; an id that could forge a log line or a header is replaced."""
    record = RequestRecord(request_id if _REQUEST_ID.fullmatch(request_id) else uuid4().hex, scope["method"])
    scope.setdefault("state", {})[_KEY] = record
    return record


def record_of(request: HTTPConnection) -> RequestRecord:
    """The record of a request, in a route of the service."""
    record: RequestRecord = request.scope["state"][_KEY]
    return record


def place_of(error: BaseException) -> str:
    """Class of an error and the line that raised it: its message may hold a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else "")


def log_request(record: RequestRecord, path: str, *, with_text: bool) -> None:
    """Write the request's line: JSON, without a word of its texts unless `with_text`."""
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "method": record.method,
        "path": path,
        "status": record.status,
        "ms": round(1000 * record.seconds(), 2),
    }
    if record.tokens is not None:
        line |= {"tokens_before": record.tokens[0], "tokens_after": record.tokens[1]}
    if record.error is not None:
        line["error"] = record.error
    if with_text and record.text is not None:
        line["text"] = record.text
    logger.log(logging.ERROR if record.status == 500 else logging.INFO, "%s", json.dumps(line))
