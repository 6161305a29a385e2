"""Serializable model references: names from which a part's models can be loaded again, never weights."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from ..errors import InvalidInputError
from .loading import LoadedModel, ModelSpec
from .locks import ForkSafeLock

_PLACEHOLDER = "object:"  # prefix of the reference to a model that was given as an object; its type or name follows


_identities: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_lock = ForkSafeLock()


def model_identity(spec: Any) -> str:
    """Return what tells a model from every other one: its name, or for objects marks that no other object ever gets.

    A loaded model is an object too: its name says neither its revision nor its precision.
    """
    if isinstance(spec, LoadedModel):
        spec = (spec.model, spec.tokenizer)
    parts = spec if isinstance(spec, tuple) else (spec,)
    return " ".join(os.fspath(part) if isinstance(part, str | os.PathLike) else _identity(part) for part in parts)


def _identity(part: Any) -> str:
    if part is None:
        return "none"
    with _lock:
        return _identities.setdefault(part, uuid4().hex)


def model_reference(spec: ModelSpec) -> str:
    """Return the reference of a model: a loadable name, or a placeholder for an object."""
    if isinstance(spec, LoadedModel):
        return spec.source if spec.source is not None else _PLACEHOLDER + spec.name
    return as_reference(spec[0] if isinstance(spec, tuple) else spec)


def as_reference(value: Any) -> str:
    """Return the reference of anything that a string or path can name, such as a tokenizer."""
    return os.fspath(value) if isinstance(value, str | os.PathLike) else _PLACEHOLDER + type(value).__name__


def display_name(reference: str) -> str:
    """Return a reference without its placeholder prefix, for people."""
    return reference.removeprefix(_PLACEHOLDER)


def is_placeholder(value: Any) -> bool:
    """Whether `value` is the reference of an object, which cannot be loaded again."""
    return isinstance(value, str) and value.startswith(_PLACEHOLDER)


def check_loadable(field: str, value: Any) -> None:
    """Check that `value` can be loaded.

    Raises:
        InvalidInputError: it is the placeholder of an object that the part had before it was saved.
    """
    if is_placeholder(value):
        raise InvalidInputError(
            f"this part was saved or rebuilt without its {field}, which was an object ({display_name(value)}). Make it "
            f"again with {field}=..., or name it by a hub id or folder from the start."
        )


class Reference(ABC):
    """Holder of a part's models that is compared and pickled by reference, and shared by copies of the part."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> Reference:
        return self  # a copy of a part shares its models

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Return the references and settings from which it is made again."""
