"""The draft of a service: what `SpecPC("http://host:port")` has in place of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from .. import errors
from ..config import CompressionConfig, SpecPCConfig
from ..errors import DraftApproxError, InvalidInputError, ServiceUnavailableError
from ..models.loading import LoadedModel
from ..report.heatmap import Heatmap
from ..results import CompressionResult
from .http_client import TOKEN_VARIABLE, HttpClient
from .request import Request
from .text.segmentation import Passage
from .validation import as_config, check_passages

if TYPE_CHECKING:
    import httpx

Answer = TypeVar("Answer")
_SENT_TOGETHER = 16  # passages of an ingest, so that progress is seen and no request takes long
_COUNTED_TOGETHER = 256


class RemoteDraft(LoadedModel):
    """The draft of a service that `draftapprox serve` runs; `SpecPC` sends its work there.

        pc = SpecPC(RemoteDraft("http://host:8000", timeout=300))

    `SpecPC("http://host:8000")` makes one with the default settings. Saved and copied parts keep its address and
    settings, never its token.

    Args:
        url: Address of the service.
        token: Its token. None: the environment variable DRAFTAPPROX_TOKEN, if it is set.
        timeout: Seconds to wait for an answer.
        patience: Seconds after its start in which a request is tried again when the connection fails or the service has
            no place for it.

    Attributes:
        name: Name of the service's draft; the service is asked at first use.
        source: Address of the service.

    Raises:
        InvalidInputError: not an address, or a token that no header can carry.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 120.0, patience: float = 20.0):
        for setting, value in (("timeout", timeout), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InvalidInputError(f"{setting} must be seconds, more than 0; got {value!r}")
        self.source: str = _check_address(url)
        self._http = HttpClient(self.source, token, timeout, patience)

    def compress(self, request: Request) -> CompressionResult:
        """The result of a compression."""
        return self._read(self._http.send("POST", "/v1/compress", _body_of(request)), _as_result)

    async def acompress(self, request: Request) -> CompressionResult:
        """`compress`, without blocking the event loop."""
        return self._read(await self._http.asend("POST", "/v1/compress", _body_of(request)), _as_result)

    def ingest(self, items: Sequence[Passage], progress: Callable[[int, int], object] | None = None) -> int:
        """Let the service read passages into its store; return the number of tokens it read."""
        read = 0
        for start in range(0, len(items) or 1, _SENT_TOGETHER):  # also nothing at all, which may be refused
            some = items[start : start + _SENT_TOGETHER]
            body = {"passages": [item.text for item in some], "titles": [item.title for item in some]}
            read += self._ask("POST", "/v1/ingest", body, lambda answer: int(answer["tokens"]))
            if progress is not None and some:
                progress(start + len(some), len(items))
        return read

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, counted by the service's tokenizer."""
        texts, counts = check_passages(texts), []
        for start in range(0, len(texts), _COUNTED_TOGETHER):
            body = {"texts": texts[start : start + _COUNTED_TOGETHER]}
            counts += self._ask("POST", "/v1/count_tokens", body, lambda answer: [int(n) for n in answer["tokens"]])
        return counts

    def info(self) -> dict[str, Any]:
        """What the service says about itself: version, draft, tokenizer, scorer, limits."""
        return self._ask("GET", "/v1/info", None, dict)

    def _ask(self, method: str, path: str, body: Any, read: Callable[[Any], Answer]) -> Answer:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return self._read(self._http.send(method, path, content), read)

    def _read(self, response: httpx.Response, read: Callable[[Any], Answer]) -> Answer:
        """What `read` makes of the answer.

        Raises:
            DraftApproxError: the service's error, of the class that it raised there.
            ServiceUnavailableError: it has no place, has failed, or is no service of this package.
        """
        try:
            answer = json.loads(response.content)
            if response.is_success:
                return read(answer)
            message, raised = str(answer["error"]["message"]), answer["error"].get("raised")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServiceUnavailableError(
                f"{self.source} answered {response.status_code}, and not as `draftapprox serve` does; check the address"
            ) from error
        if response.status_code == 401:
            raise InvalidInputError(
                f"the service at {self.source} wants its token: set {TOKEN_VARIABLE}, or SpecPC(url, token=...)"
            )
        kind = getattr(errors, raised, None) if isinstance(raised, str) else None
        if isinstance(kind, type) and issubclass(kind, DraftApproxError):
            raise kind(message)
        refused = 400 <= response.status_code < 500 and response.status_code not in (404, 405, 429)
        where = "" if refused else f"the service at {self.source} answered {response.status_code}: "
        raise (InvalidInputError if refused else ServiceUnavailableError)(where + message)

    def __getattr__(self, field: str) -> Any:
        if field == "name":
            self.name = str(self.info()["draft"])
            return self.name
        if field in ("model", "tokenizer"):
            raise InvalidInputError(
                f"the draft is in the service at {self.source}: select, calibrate, scorer and its weights are there "
                'only. Load a draft in this process for them: SpecPC("default")'
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {field!r}")

    def __deepcopy__(self, memo: object) -> RemoteDraft:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(RemoteDraft, timeout=self._http.timeout, patience=self._http.patience), (self.source,)

    def __repr__(self) -> str:
        return f"RemoteDraft({self.source!r})"


def is_address(draft: Any) -> bool:
    """Whether a draft is named by the address of a service."""
    return isinstance(draft, str) and draft.lower().startswith(("http://", "https://"))


def as_remote(draft: Any, token: str | None = None) -> RemoteDraft | None:
    """The draft of a service; None for a draft of this process.

    Raises:
        InvalidInputError: not an address as it should be, or a token without an address.
    """
    if is_address(draft):
        return RemoteDraft(draft, token=token)
    if token is not None:
        raise InvalidInputError('token is for a service: SpecPC("http://host:port", token=...)')
    return draft if isinstance(draft, RemoteDraft) else None


def refuse_settings(
    draft: Any,
    config: Any = None,
    compression: Any = None,
    scorer: Any = "fused",
    tokenizer: Any = None,
    store: Any = None,
    embedder: Any = None,
    heads: Any = None,
) -> None:
    """Refuse settings beside a service, which has its own.

    Raises:
        InvalidInputError: names the settings.
    """
    if not is_address(draft) and not isinstance(draft, RemoteDraft):
        return
    given = {
        "config": config is not None and as_config(config, SpecPCConfig) != SpecPCConfig(),
        "compression": compression is not None and as_config(compression, CompressionConfig) != CompressionConfig(),
        "scorer": scorer != "fused",
        "tokenizer": tokenizer is not None,
        "store": store is not None,
        "embedder": embedder is not None,
        "heads": heads is not None,
    }
    if names := ", ".join(name for name, is_given in given.items() if is_given):
        raise InvalidInputError(
            f"{names}: a service has its own; set it where the service starts (draftapprox serve --help, or create_app "
            "with a SpecPC of yours), or load the draft in this process"
        )


def _check_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        usable = False
    else:
        if parts.username is not None or parts.password is not None:
            raise InvalidInputError(
                f"a service's address is saved and shown, so it must hold no password: set {TOKEN_VARIABLE}, or give "
                "the token as token=..."
            )
        usable = usable and not (parts.query or parts.fragment) and url.isprintable() and " " not in url
    if not usable:
        raise InvalidInputError(f'a service is named by its address, such as "http://localhost:8000"; got {url!r}')
    return os.fspath(url).rstrip("/")


def _body_of(request: Request) -> bytes:
    return json.dumps(request.to_dict() | {"full": True}, allow_nan=False).encode()


def _as_result(answer: Any) -> CompressionResult:
    return CompressionResult.from_dict(answer, Heatmap())
