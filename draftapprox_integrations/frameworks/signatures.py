"""Constructors of pydantic classes that type checkers and editors can see."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def inherit_constructor(init: Callable[P, None]) -> Callable[[Callable[..., None]], Callable[P, None]]:
    """Decorate an empty `__init__` to be a base class's, with its signature.

    At runtime the base class's `__init__` would be inherited anyway. But for a pydantic class without an `__init__` of
    its own, type checkers derive one from the fields, whose types are those that are saved: names of models only.
    """
    return lambda _: init
