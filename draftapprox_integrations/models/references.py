"""What is written down of a part's models when it is saved: names that can be loaded again, never weights."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

from ..errors import InvalidInputError
from .loading import LoadedModel, ModelSpec

_OBJECT = "object:"  # what was not given by name is saved as this and its type


def model_name(spec: ModelSpec) -> str:
    """A name that can be loaded again, or a marker that it was an object."""
    if isinstance(spec, LoadedModel):
        return spec.source if spec.source is not None else _OBJECT + spec.name
    return saved_name(spec[0] if isinstance(spec, tuple) else spec)


def saved_name(given: Any) -> str:
    """As `model_name`, for anything that may be named by a string or path."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else _OBJECT + type(given).__name__


def shown_name(name: str) -> str:
    """A saved name without its marker, to show to people."""
    return name.removeprefix(_OBJECT)


def is_marker(given: Any) -> bool:
    """Whether this was saved in place of an object."""
    return isinstance(given, str) and given.startswith(_OBJECT)


def check_named(field: str, given: Any) -> None:
    """Raises:
    InvalidInputError: `given` marks an object that a saved part was made with and cannot bring back.
    """
    if is_marker(given):
        raise InvalidInputError(
            f"this part was saved or rebuilt without its {field}, which was an object ({shown_name(given)}). Make it "
            f"again with {field}=..., or name it by a hub id or folder from the start."
        )


class Reference(ABC):
    """Where a part holds its models: compared and pickled by name, shared by copies."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> Reference:
        return self  # a copy of a part shares its models, it does not double them

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Names and settings, from which it is made again."""
