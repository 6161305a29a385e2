"""The methods that can be compared, by name, each made from flat settings as a file or a command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..config import MethodConfig, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import InvalidInputError

METHODS = ("full", "snapkv", "speckv", "specpc", "speckvpc", "specpc-text")
_PREFIXES = {"specpc_config": "specpc_", "speckv_config": "speckv_"}


def method_config(method: str, settings: Mapping[str, Any], window: int) -> MethodConfig:
    """The engine's config of a method.

    Args:
        method: "full": nothing is dropped; "snapkv": KV eviction without a draft; "speckv", "specpc", "speckvpc": the
            paper's; "specpc-text": sentences are dropped before the engine, which then drops nothing.
        settings: Fields of the method's config. For "speckvpc" those of its two parts, as dicts "specpc_config" and
            "speckv_config", or flat with the prefixes "specpc_" and "speckv_".
        window: Tokens that the target reads.

    Raises:
        InvalidInputError: there is no such method or setting, or a value is out of its limits.
    """
    if method not in METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    given = dict(settings)
    if method == "specpc-text":
        given.pop("max_capacity_prompt", None)
    if method in ("full", "specpc-text"):
        _refuse(method, given, [] if method == "full" else ["max_capacity_prompt"])
        return SpecKVConfig(max_capacity_prompt=window, lookahead_tokens=0)
    if method == "speckvpc":
        parts = {name: dict(given.pop(name, {})) for name in _PREFIXES}
        for name, prefix in _PREFIXES.items():
            parts[name] |= {key.removeprefix(prefix): given.pop(key) for key in list(given) if key.startswith(prefix)}
        known = [f"{prefix}{field.name}" for prefix in _PREFIXES.values() for field in fields(SpecPCConfig)]
        _refuse(method, given, known)
        return SpecKVPCConfig(
            specpc_config=_made(SpecPCConfig, method, parts["specpc_config"]),
            speckv_config=_made(SpecKVConfig, method, parts["speckv_config"]),
        )
    if method == "snapkv":
        given.setdefault("lookahead_tokens", 0)
    made: MethodConfig = _made(SpecPCConfig if method == "specpc" else SpecKVConfig, method, given)
    return made


def needs_draft(method: str, config: MethodConfig) -> bool:
    """Whether a method runs a draft."""
    return method == "specpc-text" or not isinstance(config, SpecKVConfig) or config.lookahead_tokens != 0


def _made(kind: type[Any], method: str, settings: Mapping[str, Any]) -> Any:
    _refuse(method, settings, [field.name for field in fields(kind)])
    try:
        return kind(**settings)
    except ValueError as error:
        raise InvalidInputError(f"{method}: {error}") from error


def _refuse(method: str, settings: Mapping[str, Any], known: list[str]) -> None:
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise InvalidInputError(
            f"{method} has no setting {', '.join(unknown)}; it has {', '.join(known) if known else 'none'}"
        )
