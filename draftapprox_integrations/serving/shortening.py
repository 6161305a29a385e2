"""Shorten the context in a request of OpenAI's API: a body in, a body and a report out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..results import CompressedPassage
from ..specpc.compressor import SpecPC
from .dropped import DroppedPiece
from .messages import Unit, chat_units, completion_units

Kind = Literal["chat", "completion"]
KeepDropped = Callable[[Sequence[DroppedPiece]], str]


@dataclass(frozen=True)
class Shortened:
    """A request after shortening.

    Attributes:
        body: The body to send on: the very bytes that came, if nothing was shortened.
        tokens_before, tokens_after: Tokens of the context that was found.
        dropped: Ids of what was left out, one for each message that was shortened.
    """

    body: bytes
    tokens_before: int = 0
    tokens_after: int = 0
    dropped: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was left out."""
        return self.tokens_after != self.tokens_before


def shorten(
    compressor: SpecPC,
    body: bytes,
    kind: Kind,
    *,
    max_tokens: int | None = None,
    keep_ratio: float | None = None,
    trigger_tokens: int = 0,
    unmarked: bool = False,
    keep_dropped: KeepDropped | None = None,
    marker: bool = False,
) -> Shortened:
    """Shorten the context in a request.

    The tokens are counted as `SpecPC.compress` does, blank lines between paragraphs left out. Small contexts pass
    whole, and larger ones share what is left of the budget equally.

    Args:
        compressor: The `SpecPC`.
        body: The body as it came. What is no JSON object, or cannot be written as it was read, stays unchanged.
        kind: Which endpoint it is for.
        max_tokens: Most tokens of context. None, without `keep_ratio`: `config.max_capacity_prompt`.
        keep_ratio: Share of each message's context to keep.
        trigger_tokens: Nothing is shortened while there are at most this many tokens of context.
        unmarked: Whether long paragraphs without any mark may be context.
        keep_dropped: Keeps what was left out of a message and returns its id. None: nothing is kept.
        marker: Whether shortened text ends with a line that names the id; needs `keep_dropped`.

    Raises:
        DraftApproxError: as `SpecPC.compress`.
    """
    request = _read(body)
    if request is None:
        return Shortened(body)
    units = (chat_units if kind == "chat" else completion_units)(request, unmarked=unmarked)
    counts = compressor.count_tokens([text for unit in units for text in unit.texts])
    rest = iter(counts)
    tokens = [sum(next(rest) for _ in unit.texts) for unit in units]
    before = sum(tokens)
    if before <= trigger_tokens or not before:
        return Shortened(body, before, before)
    if keep_ratio is None:
        shares = fair_shares(tokens, max_tokens or compressor.config.max_capacity_prompt)
    else:
        shares = [max(1, math.floor(keep_ratio * count + 1e-9)) for count in tokens]
    after, dropped = before, []
    for unit, count, share in zip(units, tokens, shares, strict=True):
        if share >= count:
            continue
        kept = _compress(compressor, unit, share)
        after += sum(passage.tokens_after for passage in kept) - count
        texts = [passage.text for passage in kept]
        pieces = [piece for passage in kept for piece in _dropped(passage)]
        if pieces and keep_dropped is not None:
            dropped.append(keep_dropped(pieces))
            if marker:
                last = max(piece.passage for piece in pieces)
                texts[last] = _marked(texts[last], pieces, dropped[-1])
        unit.write(texts)
    if after == before:
        return Shortened(body, before, before)
    return Shortened(json.dumps(request, separators=(",", ":")).encode(), before, after, dropped)


def fair_shares(tokens: Sequence[int], budget: int) -> list[int]:
    """Divide a budget: the smallest get all they need, the others equal shares of what is left.

    Args:
        tokens: What each needs, >= 0.
        budget: To be divided, >= 0.

    Returns:
        Shares that are at most the needs, and together at most the budget.
    """
    shares = [0] * len(tokens)
    for waiting, index in zip(
        range(len(tokens), 0, -1), sorted(range(len(tokens)), key=lambda i: tokens[i]), strict=True
    ):
        shares[index] = min(tokens[index], budget // waiting)
        budget -= shares[index]
    return shares


def _compress(compressor: SpecPC, unit: Unit, share: int) -> list[CompressedPassage]:
    if share:
        return compressor.compress(unit.texts, unit.query, max_tokens=share).passages
    return [
        CompressedPassage(text, "", [], math.nan, count, 0, index=index)
        for index, (text, count) in enumerate(zip(unit.texts, compressor.count_tokens(unit.texts), strict=True))
    ]


def _dropped(passage: CompressedPassage) -> list[DroppedPiece]:
    """What was left out of a passage, white space at its borders left out too."""
    borders = [0, *(border for span in passage.kept for border in span), len(passage.original)]
    pieces = []
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        text = passage.original[start:end]
        if text.strip():
            pieces.append(DroppedPiece(text.strip(), start + len(text) - len(text.lstrip()), passage.index))
    return pieces


def _marked(text: str, pieces: Sequence[DroppedPiece], key: str) -> str:
    characters = sum(len(piece.text) for piece in pieces)
    return f"{text}\n[{characters} characters left out; id {key}]".lstrip("\n")


def _read(body: bytes) -> dict[str, Any] | None:
    """The JSON object, None for anything else, and for numbers that would be written differently."""
    try:
        read = json.loads(body, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise ValueError(f"{literal} is too large")
    return number
