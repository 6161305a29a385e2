"""One prompt for the engine, and how its tokens are sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a request.

    Attributes:
        temperature: 0 is greedy.
        top_p, top_k: Truncation of the distribution; None for none.
        seed: Makes sampling repeatable; None uses torch's global generator.

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
    def pop_from(cls, options: dict[str, Any]) -> Sampling:
        """Remove the sampling settings from `options` and return them."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: options.pop(name) for name in names if name in options})

    def generate_options(self) -> dict[str, Any]:
        """The matching arguments of `model.generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": float(self.temperature),
            "top_p": self.top_p or 1.0,
            "top_k": self.top_k or 0,
        }

    @contextmanager
    def seeded(self, device: torch.device) -> Iterator[None]:
        """Seed torch inside the block and restore its generators afterwards. No effect if greedy or unseeded."""
        if self.seed is None or self.temperature == 0:
            yield
            return
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


@dataclass(eq=False)
class Request:
    """One prompt.

    Attributes:
        prompt_ids: Token ids of the prompt, at least one.
        max_new_tokens: Most tokens to generate, >= 0.
        sampling: Sampling settings.
        stop_strings: Texts before which the answer ends.
        generate_options: Further arguments of `model.generate`.
        protected: Per prompt token, whether SpecPC must keep it. None: SpecPC may drop any token before its window.
        fits_budget: The prompt is within every budget, so nothing is dropped.
        on_token: Called with each new token id, in the thread that runs the batch.
        cancelled: Set to end the generation at its next token.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop_strings: tuple[str, ...] = ()
    generate_options: dict[str, Any] = field(default_factory=dict)
    protected: list[bool] | None = None
    fits_budget: bool = True
    on_token: Callable[[int], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def batch_key(self) -> Hashable | None:
        """Requests with equal keys may share a batch. None: this one runs alone, which keeps a seed repeatable."""
        if self.generate_options or self.max_new_tokens == 0:
            return None
        if self.sampling.temperature == 0:
            return ("greedy", self.fits_budget)
        return None if self.sampling.seed is not None else (self.sampling, self.fits_budget)
