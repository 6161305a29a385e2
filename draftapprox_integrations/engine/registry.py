"""Engines shared within the process: parts with equal models and settings get one queue and one copy of the weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

from ..config import MethodConfig, Positions, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..models.loading import ModelSpec, load_model
from ..models.locks import ForkSafeLock
from ..speckv.text_draft import DraftSpec, as_draft
from .engine import SpecKV

Method = Literal["speckv", "speckvpc", "specpc", "full"]

_CONFIGS: dict[Method, type[Any]] = {"speckv": SpecKVConfig, "speckvpc": SpecKVPCConfig, "specpc": SpecPCConfig}
# Method "full": nothing is dropped and no draft is needed. `model.generate` behind the engine's queue.
FULL = SpecKVConfig(max_capacity_prompt=1 << 40, lookahead_tokens=0)

_engines: WeakValueDictionary[Any, SpecKV] = WeakValueDictionary()
_engines_lock = ForkSafeLock()


def shared_engine(
    target: ModelSpec,
    draft: DraftSpec,
    config: MethodConfig,
    *,
    positions: Positions = "renumber",
    max_batch_size: int = 8,
    **loading: Any,
) -> SpecKV:
    """Return the engine of these models and settings; make it if there is none.

    Args:
        target, draft, config, positions, max_batch_size: As for `SpecKV`.
        **loading: Arguments of `load_model` for models given by name: `device`, `dtype`, ...
    """
    target_model = load_model(target, **loading)
    draft_model: Any = draft if draft is None or draft == "self" else as_draft(draft, **loading)
    draft_key = draft_model if isinstance(draft_model, str | None) else id(draft_model)
    key = (id(target_model), draft_key, config, positions, max_batch_size)
    with _engines_lock:
        engine = _engines.get(key)  # it holds both models, so their ids are not reused while it lives
        if engine is None:
            engine = SpecKV(target_model, draft_model, config, positions=positions, max_batch_size=max_batch_size)
            _engines[key] = engine
        return engine


def as_method(method: Method | None, config: MethodConfig | dict[str, Any] | None) -> tuple[Method, MethodConfig]:
    """Resolve a method and its settings; without a method, the type of the settings decides.

    Raises:
        InvalidInputError: an unknown method, or settings of another one.
        ValueError: a setting out of range.
    """
    if method is None:
        matches = [name for name, kind in _CONFIGS.items() if isinstance(config, kind)]
        return as_method(matches[0] if matches else "speckv", config)
    if method not in get_args(Method):
        raise InvalidInputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}; got {method!r}")
    if method == "full":
        if config not in (None, {}, FULL, asdict(FULL)):
            raise InvalidInputError('method "full" drops nothing and has no settings; leave config out')
        return method, FULL
    kind = _CONFIGS[method]
    if isinstance(config, dict):
        config = kind(**config)
    if config is not None and not isinstance(config, kind):
        raise InvalidInputError(
            f'method "{method}" takes a {kind.__name__}; got {type(config).__name__}. Without method, config decides.'
        )
    settings: MethodConfig = config or kind()
    return method, settings
