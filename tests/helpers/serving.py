"""Shared by the tests of both frameworks' LLM classes: settings, a prompt, direct calls, hooks on forward passes."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig
from draftapprox_integrations.results import Generation

TIGHT = SpecKVConfig(max_capacity_prompt=32, window_size=8, lookahead_tokens=4)
FLOAT32 = {"dtype": "float32"}  # the embedded model's literal answers in bfloat16 depend on the CPU
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. " * 4
_PATIENCE = 60  # seconds until a test that hangs fails


def direct(model: LoadedModel, prompt: str, **options: Any) -> Generation:
    """What the engine generates when it is called without a framework."""
    return SpecKV(model, "self", TIGHT).generate(prompt, **{"max_new_tokens": 8, **options})[0]


@contextmanager
def batch_sizes(model: LoadedModel) -> Iterator[list[int]]:
    """The batch size of every forward pass inside the block."""
    sizes: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        handle.remove()


@contextmanager
def forward_passes_need_the_event_loop(model: LoadedModel) -> Iterator[None]:
    """Every forward pass waits until the running event loop has taken a turn; a blocked loop makes it fail."""
    loop = asyncio.get_running_loop()

    def wait_for_the_loop(*_: Any) -> None:
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        if not turned.wait(_PATIENCE):
            raise TimeoutError("the event loop is blocked")

    handle = model.model.register_forward_pre_hook(wait_for_the_loop)
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Lets a model do some forward passes, and further ones only once the gate is open.

    Attributes:
        passes: Number of forward passes begun.
    """

    def __init__(self, model: LoadedModel, free_passes: int) -> None:
        self.passes = 0
        self._free_passes, self._opened = free_passes, threading.Event()
        self._handle = model.model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        self.passes += 1
        if self.passes > self._free_passes and not self._opened.wait(_PATIENCE):
            raise TimeoutError("the gate was never opened")

    def open(self) -> None:
        self._opened.set()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._handle.remove()


def wait_until_idle(engine: SpecKV) -> None:
    """Return once the engine has nothing to do."""
    deadline = time.monotonic() + _PATIENCE
    while not engine.is_idle:
        assert time.monotonic() < deadline, "the engine is still busy"
        time.sleep(0.002)
