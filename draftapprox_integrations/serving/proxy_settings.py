"""Settings of the proxy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..errors import InvalidInputError
from ..specpc.budget import Budget


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """What the proxy shortens, how far, and how long it waits.

    Args:
        max_tokens: Most tokens of context of one request, >= 1. None, without `keep_ratio`: the compressor's
            `config.max_capacity_prompt`.
        keep_ratio: Share of each message's context to keep, in (0, 1]; instead of `max_tokens`.
        trigger_tokens: Nothing is shortened while the context of a request has at most this many tokens. 0: no
            threshold.
        unmarked: Whether long paragraphs without any mark may be context; see `contexts`.
        time_limit: Seconds for shortening one request, waiting included, > 0. A request that takes longer goes on as
            it came.
        workers: Requests that are shortened at the same time, >= 1; others wait.
        upstream_key: Sent to the upstream as its API key, in place of what clients send. None: theirs is passed on. "":
            none is sent.
        connect_seconds: Seconds to wait for a connection to the upstream, > 0.
        read_seconds: Seconds to wait for the next bytes of the upstream, > 0.
        dropped_bytes: Bytes of dropped text that are kept to be asked for, >= 0. 0: none.
        dropped_seconds: Seconds they are kept, > 0.
        marker: Whether shortened text ends with a line that says how much was left out, and its id. Without it text is
            verbatim pieces of the original. The line is not part of the budget.
        report_in_body: Whether an answer in JSON that is not streamed gets an object "draftapprox" beside "usage".

    Raises:
        InvalidInputError: names the setting, the value and the limit.
    """

    max_tokens: int | None = None
    keep_ratio: float | None = None
    trigger_tokens: int = 2048
    unmarked: bool = False
    time_limit: float = 10.0
    workers: int = 2
    upstream_key: str | None = field(default=None, repr=False)
    connect_seconds: float = 10.0
    read_seconds: float = 600.0
    dropped_bytes: int = 64 * 2**20
    dropped_seconds: float = 3600.0
    marker: bool = False
    report_in_body: bool = False

    def __post_init__(self) -> None:
        Budget(max_tokens=self.max_tokens, keep_ratio=self.keep_ratio)
        for name, least in (("trigger_tokens", 0), ("workers", 1), ("dropped_bytes", 0)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInputError(f"{name} must be an integer >= {least}; got {value!r}")
        for name in ("time_limit", "connect_seconds", "read_seconds", "dropped_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidInputError(f"{name} must be a number of seconds > 0; got {value!r}")
        for name in ("unmarked", "marker", "report_in_body"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be True or False; got {getattr(self, name)!r}")
        key: Any = self.upstream_key
        if key is not None and not (
            isinstance(key, str) and key.isascii() and key.isprintable() and key == key.strip()
        ):
            raise InvalidInputError("upstream_key must be a string of printable ASCII characters")
        if self.marker and not self.dropped_bytes:
            raise InvalidInputError("marker names the id of dropped text, which dropped_bytes=0 does not keep")


def upstream_base(upstream: str) -> httpx.URL:
    """The address that stands for "/v1", from what clients call their base URL.

    Args:
        upstream: Such as "http://localhost:8000/v1"; an address without a path gets "/v1".

    Raises:
        InvalidInputError: no address of HTTP.
    """
    try:
        url = httpx.URL(upstream.strip())
    except (httpx.InvalidURL, TypeError, AttributeError) as error:
        raise InvalidInputError(f"upstream must be an address such as http://localhost:8000/v1 ({error})") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidInputError(f"upstream must be an address such as http://localhost:8000/v1; got {upstream!r}")
    return url.copy_with(path=url.path.rstrip("/") or "/v1")
