"""HTTP to a service: pooled connections, sync and async, with retries that end."""

from __future__ import annotations

import asyncio
import os
import random
import time
import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError, MissingDependencyError, ServiceUnavailableError
from ..models.locks import ForkSafeLock

if TYPE_CHECKING:
    import httpx

TOKEN_VARIABLE = "DRAFTAPPROX_TOKEN"
_CONNECT_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_RETRIED = (429, 502, 503, 504)

# Per event loop: address and timeout of a service, its client, and the generator that closes it when the loop ends.
# Kept here, because closing takes a turn of the loop, which an object that is dropped at the loop's end does not get.
_of_loops: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[str, float], tuple[httpx.AsyncClient, AsyncGenerator[None]]]
] = weakref.WeakKeyDictionary()
_loops_lock = ForkSafeLock()


class HttpClient:
    """Sends requests to one service, again where that may help.

    A connection that fails, and the answers 429, 502, 503 and 504, are tried again after a pause that grows, or as long
    as the answer's Retry-After tells. Threads share it; each event loop and each forked child connects by itself.

    Args:
        url: Address of the service, without a slash at its end.
        token: Its token; None reads the environment variable DRAFTAPPROX_TOKEN at each request.
        timeout: Seconds to wait for an answer.
        patience: Seconds after its start in which a request is tried again.

    Raises:
        MissingDependencyError: httpx is not installed.
        InvalidInputError: a token that no header can carry.
    """

    def __init__(self, url: str, token: str | None, timeout: float, patience: float):
        _check_installed()
        self.url, self.timeout, self.patience = url, timeout, patience
        self._token = None if token is None else _check_token(token)
        self._lock = ForkSafeLock()
        self._client: httpx.Client | None = None
        self._process = 0
        self._closing: weakref.finalize[..., HttpClient] | None = None

    def send(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        """Send a request and return the answer, whatever its status.

        Raises:
            ServiceUnavailableError: no answer came.
        """
        import httpx

        attempts = Attempts(self.url, self.timeout, self.patience)
        while True:
            answer: httpx.Response | httpx.RequestError
            try:
                answer = self._sync_client().request(method, self.url + path, content=content, headers=self._headers())
            except httpx.RequestError as error:
                answer = error
            pause = attempts.pause_after(answer)
            if pause is not None:
                time.sleep(pause)
            elif isinstance(answer, httpx.Response):
                return answer

    async def asend(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        """`send`, without blocking the event loop."""
        import httpx

        attempts = Attempts(self.url, self.timeout, self.patience)
        while True:
            answer: httpx.Response | httpx.RequestError
            client = await self._async_client()
            try:
                answer = await client.request(method, self.url + path, content=content, headers=self._headers())
            except httpx.RequestError as error:
                answer = error
            pause = attempts.pause_after(answer)
            if pause is not None:
                await asyncio.sleep(pause)
            elif isinstance(answer, httpx.Response):
                return answer

    def _headers(self) -> dict[str, str]:
        token = self._token or os.environ.get(TOKEN_VARIABLE, "").strip()
        headers = {"Content-Type": "application/json"}
        return headers | {"Authorization": f"Bearer {_check_token(token)}"} if token else headers

    def _sync_client(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None or self._process != os.getpid():  # a child's requests would mix with its parent's
                if self._closing is not None:
                    self._closing.detach()
                self._client, self._process = httpx.Client(**self._settings()), os.getpid()
                self._closing = weakref.finalize(self, self._client.close)
            return self._client

    async def _async_client(self) -> httpx.AsyncClient:
        import httpx

        with _loops_lock:
            clients = _of_loops.setdefault(asyncio.get_running_loop(), {})
            client, _ = clients.get((self.url, self.timeout), (None, None))
            if client is not None:
                return client
            client = httpx.AsyncClient(**self._settings())
            closing = _closed_with_the_loop(client)
            clients[self.url, self.timeout] = client, closing
        await anext(closing)
        return client

    def _settings(self) -> dict[str, Any]:
        import httpx

        encrypted = self.url.startswith("https:")  # reading certificates takes longer than a request
        return {
            "timeout": httpx.Timeout(self.timeout, connect=min(_CONNECT_SECONDS, self.timeout)),
            "verify": encrypted,
        }


class Attempts:
    """Decides after each try of one request whether, and when, to try again.

    Args:
        url: The service, for messages.
        timeout: Seconds that each try may take.
        patience: Seconds after which no further try begins.
    """

    def __init__(self, url: str, timeout: float, patience: float):
        self._url, self._timeout = url, timeout
        self._end = time.monotonic() + patience
        self._pause = _FIRST_PAUSE

    def pause_after(self, answer: httpx.Response | httpx.RequestError) -> float | None:
        """Seconds until the next try; None if `answer` is the one to return.

        Raises:
            ServiceUnavailableError: there is no answer, and no further try.
        """
        import httpx

        least = 0.0
        if isinstance(answer, httpx.Response):
            if answer.status_code not in _RETRIED:
                return None
            least = _seconds(answer.headers.get("retry-after", ""))
        elif isinstance(answer, httpx.TimeoutException) and not isinstance(answer, httpx.ConnectTimeout):
            raise ServiceUnavailableError(
                f"the service at {self._url} did not answer within {self._timeout:g} s; give it more time: "
                "SpecPC(RemoteDraft(url, timeout=...))"
            ) from answer
        pause = max(least, self._pause) * random.uniform(1.0, 1.5)  # clients that failed together do not come together
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if time.monotonic() + pause <= self._end:
            return pause
        if isinstance(answer, httpx.Response):
            return None
        raise ServiceUnavailableError(
            f"no service answers at {self._url} ({type(answer).__name__}: {answer}); check the address, or start one: "
            "draftapprox serve"
        ) from answer


async def _closed_with_the_loop(client: httpx.AsyncClient) -> AsyncGenerator[None]:
    """Close `client` when its event loop ends: `asyncio.run` and servers finish a loop's generators before."""
    try:
        yield
    finally:
        await client.aclose()


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header; 0 for a date."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _check_token(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInputError("a service's token must be printable ASCII without spaces (it is not shown here)")
    return token


def _check_installed() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("a service is reached through httpx: pip install httpx") from error
