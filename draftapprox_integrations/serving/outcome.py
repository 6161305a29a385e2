"""What a request asks of the proxy in its headers, and what the answer's headers say became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ServiceError
from .shortening import Shortened

OWN_HEADERS = b"x-draftapprox"  # how the names of the proxy's own headers begin
_IDS_IN_HEADER = 64  # of dropped text; clients refuse long headers

Status = Literal["shortened", "untouched", "failed", "off"]


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    Attributes:
        off: Whether it is to go on as it came.
        max_tokens: Its own budget, which replaces the settings' budget and threshold. None: the settings'.
    """

    off: bool
    max_tokens: int | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Wish:
        """Read the headers X-DraftApprox and X-DraftApprox-Max-Tokens.

        Raises:
            ServiceError: a value that cannot be used.
        """
        switch = headers.get("x-draftapprox", "on").strip().lower()
        if switch not in ("on", "off"):
            raise ServiceError(400, f"the header X-DraftApprox must be on or off; got {switch!r}")
        given = headers.get("x-draftapprox-max-tokens")
        if given is None:
            return cls(switch == "off", None)
        digits = given.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) >= 1):
            raise ServiceError(400, f"the header X-DraftApprox-Max-Tokens must be an integer >= 1; got {given!r}")
        return cls(switch == "off", int(digits))


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        status: "shortened"; "untouched": nothing had to be or could be; "failed": it went on as it came; "off".
        shortened: The request as it goes on.
        seconds: Seconds that shortening took.
        reason: Why it failed: "timeout" or "error". None for any other status.
    """

    status: Status
    shortened: Shortened
    seconds: float = 0.0
    reason: str | None = None

    def content(self) -> dict[str, Any]:
        """All of it, ready for JSON; without counts where nothing was counted."""
        content: dict[str, Any] = {"status": self.status, "seconds": round(self.seconds, 3)}
        if self.status in ("shortened", "untouched"):
            content["tokens_before"] = self.shortened.tokens_before
            content["tokens_after"] = self.shortened.tokens_after
        if self.shortened.dropped:
            content["dropped"] = self.shortened.dropped
        return content if self.reason is None else content | {"reason": self.reason}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same as headers of the answer."""
        content = self.content()
        if self.shortened.dropped:
            content["dropped"] = ",".join(self.shortened.dropped[:_IDS_IN_HEADER])
        return [
            (f"x-draftapprox-{name.replace('_', '-')}".encode(), str(value).encode()) for name, value in content.items()
        ]
