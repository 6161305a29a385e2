"""Limits of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from ..errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Where the service listens, who may use it, and how much.

    Attributes:
        host: Address to listen on; the default is reached from this machine only.
        port: Port; 0 lets the system choose one.
        token: Bearer token that requests must bring; None lets everyone in. Printable ASCII without spaces.
        max_body_bytes: Longest body of a request, in bytes.
        max_passages: Most passages, documents or texts of a request.
        max_input_tokens: Most tokens of a request's texts, all together; not counted while they have fewer UTF-8 bytes.
        max_requests: Most requests that are served at a time, those that wait or arrive slowly included.
        workers: Compressions that run at a time. Forward passes of one draft take turns anyway.
        queue: Most compressions that wait for a worker; further ones are answered 429.
        body_seconds: Seconds in which a body must arrive.
        header_seconds: Seconds in which the headers of a request must arrive.
        keep_alive_seconds: Seconds after which an idle connection is closed.
        graceful_seconds: Seconds that running requests get to finish once the service is told to stop.
        log_text: Whether the log shows queries and passages.

    Raises:
        InvalidInputError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 << 20
    max_passages: int = 1000
    max_input_tokens: int = 1 << 18
    max_requests: int = 256
    workers: int = 2
    queue: int = 64
    body_seconds: float = 10.0
    header_seconds: float = 10.0
    keep_alive_seconds: float = 30.0
    graceful_seconds: float = 30.0
    log_text: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type == "int":
                least = 0 if setting.name in ("port", "queue") else 1
                if isinstance(value, bool) or not isinstance(value, int) or value < least:
                    raise InvalidInputError(f"{setting.name} must be an integer >= {least}; got {value!r}")
            elif setting.type == "float" and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
            ):
                raise InvalidInputError(f"{setting.name} must be seconds, more than 0; got {value!r}")
        if self.port > 65535:
            raise InvalidInputError(f"port must be at most 65535; got {self.port}")
        if not isinstance(self.host, str) or not self.host:
            raise InvalidInputError(f"host must be an address to listen on; got {self.host!r}")
        token = self.token
        if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
            raise InvalidInputError("the token must be printable ASCII without spaces, and not empty")
