"""One prompt on its way to the engine, and how its answer is to be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p, top_k: Limits of sampling; None for none.
        seed: Makes sampling repeatable.

    Raises:
        InvalidInputError: names the argument, the value and the limit.
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature, top_p, top_k, seed = self.temperature, self.top_p, self.top_k, self.seed
        if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
            raise InvalidInputError(f"temperature must be >= 0; got {temperature!r}")
        if top_p is not None and not 0 < top_p <= 1:
            raise InvalidInputError(f"top_p must be in (0, 1]; got {top_p!r}")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise InvalidInputError(f"top_k must be an integer >= 1; got {top_k!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise InvalidInputError(f"seed must be an integer, or None; got {seed!r}")

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Sampling:
        """What `options` says of sampling, which is removed from it."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: options.pop(name) for name in names if name in options})

    def arguments(self) -> dict[str, Any]:
        """The arguments of `model.generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": float(self.temperature),
            "top_p": self.top_p or 1.0,
            "top_k": self.top_k or 0,
        }


@dataclass(eq=False)
class Request:
    """One prompt.

    Attributes:
        ids: The prompt's token ids, at least one.
        max_new_tokens: Most tokens to write, >= 0.
        sampling: How tokens are chosen.
        stops: Texts before which the answer ends.
        options: Further arguments of `model.generate`.
        protected: Per id whether SpecPC must keep it; None if it may drop any but its window.
        fits: Nothing of the prompt has to go.
        on_token: Called with each new token id, in the thread that runs the batch.
        cancelled: Set to end it at its next token.
    """

    ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    protected: list[bool] | None = None
    fits: bool = True
    on_token: Callable[[int], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> Hashable | None:
        """Requests of one kind may share a batch; None for one that runs alone, to be repeatable."""
        if self.options or self.max_new_tokens == 0:
            return None
        if self.sampling.temperature == 0:
            return ("greedy", self.fits)
        return None if self.sampling.seed is not None else (self.sampling, self.fits)
