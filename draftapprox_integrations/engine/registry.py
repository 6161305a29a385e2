"""What every LLM part shares, whatever its framework: which engine it speaks to, loaded on first use and shared.

Parts that name the same target, draft and settings get the same engine: one queue, one copy of the weights.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any, Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import InvalidInputError
from ..models.loading import ModelSpec, load_model
from .engine import Config, SpecKV

Method = Literal["speckv", "speckvpc", "specpc", "full"]
DraftSpec: TypeAlias = "ModelSpec | Literal['self'] | None"

_CONFIGS: dict[Method, type[Any]] = {"speckv": SpecKVConfig, "speckvpc": SpecKVPCConfig, "specpc": SpecPCConfig}
# Nothing is ever dropped, and no draft is needed: `model.generate` behind the same queue.
FULL = SpecKVConfig(max_capacity_prompt=1 << 40, lookahead_tokens=0)

_engines: WeakValueDictionary[Any, SpecKV] = WeakValueDictionary()
_engines_lock = threading.Lock()


def shared_engine(
    target: ModelSpec, draft: DraftSpec, config: Config, max_batch_size: int = 8, **loading: Any
) -> SpecKV:
    """The engine of these models and settings, made if there is none.

    Args:
        target, draft, config, max_batch_size: As for `SpecKV`.
        **loading: How names are loaded: `device`, `dtype`, ... of `load_model`.
    """
    served = load_model(target, **loading)
    guesser: Any = draft if draft is None or draft == "self" else load_model(draft, **loading)
    key = (id(served), guesser if isinstance(guesser, str | None) else id(guesser), config, max_batch_size)
    with _engines_lock:
        engine = _engines.get(key)  # it holds both models, so that their ids are not given to others
        if engine is None:
            engine = _engines[key] = SpecKV(served, guesser, config, max_batch_size=max_batch_size)
        return engine


def as_method(method: Method | None, config: Config | dict[str, Any] | None) -> tuple[Method, Config]:
    """The method and its settings; the settings tell the method where it is not named.

    Raises:
        InvalidInputError: an unknown method, or settings of another one.
        ValueError: a setting out of range.
    """
    if method is None:
        followed = [name for name, kind in _CONFIGS.items() if isinstance(config, kind)]
        return as_method(followed[0] if followed else "speckv", config)
    if method not in get_args(Method):
        raise InvalidInputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}; got {method!r}")
    if method == "full":
        if config not in (None, {}, FULL, asdict(FULL)):
            raise InvalidInputError('method "full" drops nothing and has no settings; leave config out')
        return method, FULL
    kind = _CONFIGS[method]
    if isinstance(config, dict):
        if kind is SpecKVPCConfig:
            specpc, speckv = SpecPCConfig(**config.get("specpc", {})), SpecKVConfig(**config.get("speckv", {}))
            config = SpecKVPCConfig(**config | {"specpc": specpc, "speckv": speckv})
        else:
            config = kind(**config)
    if config is not None and not isinstance(config, kind):
        raise InvalidInputError(
            f'method "{method}" takes a {kind.__name__}; got {type(config).__name__}. Without method, config decides.'
        )
    settings: Config = config or kind()
    return method, settings
