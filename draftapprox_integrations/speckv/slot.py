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
from ..models import LoadedModel, ModelSpec, load_model
from ..naming import Slot, check_named, model_name
from .generator import Config, SpecKV

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


class GeneratorSlot(Slot):
    """Holds the engine of an LLM part: given ready-made, or made on first use from names.

    Pickling keeps names and settings, not weights: what was given as an object must be given again.

    Args:
        model: The target: a model spec, a `LoadedModel`, or a `SpecKV` to share.
        draft: A model spec, "self", or None where the method needs no draft.
        method: "speckv", "speckvpc" (the cascade), "specpc" or "full"; None follows `config`.
        config: The method's settings.
        max_batch_size: As for `SpecKV`.
        loading: Arguments of `load_model` for names.

    Attributes:
        method, config: In use.
        model_name, draft_name: What to save.

    Raises:
        InvalidInputError: settings that do not fit the method, or a shared engine with further settings.
    """

    def __init__(
        self,
        model: ModelSpec | SpecKV,
        draft: DraftSpec = "self",
        method: Method | None = None,
        config: Config | dict[str, Any] | None = None,
        max_batch_size: int = 8,
        loading: dict[str, Any] | None = None,
    ):
        self._lock = threading.Lock()
        self._engine: SpecKV | None = None
        self._model, self._draft = model, draft
        self.max_batch_size, self.loading = max_batch_size, dict(loading or {})
        if isinstance(model, SpecKV):
            if draft != "self" or config is not None:
                raise InvalidInputError("a shared SpecKV brings its own draft and config; pass a model to set others")
            self._engine, config = model, model.config
            method = "full" if config == FULL else method
            self.model_name = model_name(model.target)
            self.draft_name = model.draft_name
        else:
            self.model_name = model_name(model)
            self.draft_name = draft if draft is None or draft == "self" else model_name(draft)
        self.method, self.config = as_method(method, config)
        if self.method == "full" and not isinstance(model, SpecKV):
            self._draft = self.draft_name = None

    def get(self) -> SpecKV:
        """The engine; loading it the first time may take long.

        Raises:
            InvalidInputError: the part was saved without an object it was made with; no draft where one is needed.
            ModelLoadError: as `load_model`.
        """
        with self._lock:
            if self._engine is None:
                check_named("model", self._model)
                check_named("draft", self._draft)
                assert not isinstance(self._model, SpecKV)
                self._engine = shared_engine(self._model, self._draft, self.config, self.max_batch_size, **self.loading)
            return self._engine

    def loaded(self) -> LoadedModel:
        """The target; its tokenizer is enough for what needs no engine."""
        return self.get().target

    @property
    def draft_spec(self) -> ModelSpec:
        """The model that drafts: the target, where it drafts for itself or nothing is drafted."""
        if isinstance(self._model, SpecKV):
            return self._model.draft or self._model.target
        return self._model if self._draft is None or self._draft == "self" else self._draft

    def other(self, model: str) -> GeneratorSlot:
        """A slot for another target with the same draft and settings."""
        assert not isinstance(self._draft, SpecKV)
        return GeneratorSlot(model, self._draft, self.method, self.config_to_save(), self.max_batch_size, self.loading)

    def config_to_save(self) -> Config | None:
        """The settings, or None for "full", which has none."""
        return None if self.method == "full" else self.config

    def close(self) -> None:
        """Let go of the engine; its memory is freed once no other part uses it. The next use loads it again."""
        with self._lock:
            if not isinstance(self._model, SpecKV):
                self._engine = None

    def __reduce__(self) -> tuple[type[GeneratorSlot], tuple[Any, ...]]:
        names = (self.model_name, self.draft_name)
        return GeneratorSlot, (*names, self.method, self.config_to_save(), self.max_batch_size, self.loading)
