"""What the LLM classes of every framework share: their fields, their engine, the arguments of a call.

The one module outside the frameworks' packages that needs pydantic, which both bring.
"""

from __future__ import annotations

import threading
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..engine.engine import Config, SpecKV
from ..engine.registry import FULL, DraftSpec, Method, as_method, shared_engine
from ..errors import InvalidInputError
from ..models.loading import LoadedModel, ModelSpec
from ..models.references import Reference, check_named, model_name


class EngineReference(Reference):
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

    def other(self, model: str) -> EngineReference:
        """A slot for another target with the same draft and settings."""
        assert not isinstance(self._draft, SpecKV)
        return EngineReference(
            model, self._draft, self.method, self.config_to_save(), self.max_batch_size, self.loading
        )

    def config_to_save(self) -> Config | None:
        """The settings, or None for "full", which has none."""
        return None if self.method == "full" else self.config

    def close(self) -> None:
        """Let go of the engine; its memory is freed once no other part uses it. The next use loads it again."""
        with self._lock:
            if not isinstance(self._model, SpecKV):
                self._engine = None

    def __reduce__(self) -> tuple[type[EngineReference], tuple[Any, ...]]:
        names = (self.model_name, self.draft_name)
        return EngineReference, (*names, self.method, self.config_to_save(), self.max_batch_size, self.loading)


class SpecKVBase(BaseModel):
    """A part that serves a target model through the shared engine.

    Args:
        model: The target: a hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a
            `SpecKV` to share. A name is loaded on first use.
        draft: The same for the draft; "self": the target drafts for itself.
        method: "speckv", "speckvpc" (SpecPC first), "specpc", or "full" (nothing dropped). None follows `config`.
        config: `SpecKVConfig`, `SpecKVPCConfig` or `SpecPCConfig`.
        temperature: 0 is greedy.
        top_p, top_k, seed: Of sampling.
        timeout: Most seconds to wait for an answer.
        loading: Arguments of `load_model` for names: `device`, `dtype`, `device_map`, `attn_implementation`, ...
        max_batch_size: Most waiting requests that are served as one batch. With 1 no answer depends on the company it
            had; with more, sums in another order may turn near-ties in half precision.

    Raises:
        InvalidInputError: settings that do not fit the method.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = Field(frozen=True, description="What the target is loaded from.")
    draft: str | None = Field(default="self", frozen=True, description="What the draft is loaded from, or 'self'.")
    method: Method = Field(default="speckv", frozen=True, description="What is dropped, and how it is chosen.")
    config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig | None = Field(default=None, frozen=True)
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    timeout: float | None = None
    max_batch_size: int = Field(default=8, frozen=True)
    loading: dict[str, Any] = Field(default_factory=dict, frozen=True)

    _reference: EngineReference = PrivateAttr()

    def __init__(
        self,
        model: ModelSpec | SpecKV = "default",
        *,
        draft: DraftSpec = "self",
        method: Method | None = None,
        config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig | dict[str, Any] | None = None,
        max_batch_size: int = 8,
        loading: dict[str, Any] | None = None,
        **fields: Any,
    ):
        slot = EngineReference(model, draft, method, config, max_batch_size, loading)
        super().__init__(
            model=slot.model_name,
            draft=slot.draft_name,
            method=slot.method,
            config=slot.config_to_save(),
            max_batch_size=slot.max_batch_size,
            loading=slot.loading,
            **fields,
        )
        self._reference = slot

    def load(self) -> SpecKV:
        """Load the models now rather than at the first call, and return the engine."""
        return self._reference.get()

    def close(self) -> None:
        """Let go of the models; the memory is freed once no other part uses them. The next call loads them again."""
        self._reference.close()

    @property
    def draft_spec(self) -> ModelSpec:
        """What a retrieval part takes as its draft to use the same model as this one."""
        return self._reference.draft_spec

    def _arguments(self, defaults: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
        """Arguments for `SpecKV.submit`: the fields, then a framework's `defaults`, then what the call says."""
        names = ("temperature", "top_p", "top_k", "seed", "timeout")
        if "max_tokens" in call:  # the name that OpenAI's API has for it
            call = {**call, "max_new_tokens": call["max_tokens"]}
            del call["max_tokens"]
        return {name: getattr(self, name) for name in names} | defaults | call
