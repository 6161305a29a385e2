"""Base class of every LLM part: its fields, its engine, and the engine's options for one call.

Imports no framework; needs pydantic, which every supported framework brings.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_serializer, field_validator

from ..config import MethodConfig, Positions, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..engine.engine import SpecKV
from ..engine.registry import FULL, Method, as_method, shared_engine
from ..errors import InvalidInputError
from ..models.loading import LoadedModel, ModelSpec
from ..models.locks import ForkSafeLock
from ..models.references import Reference, check_loadable, model_identity, model_reference
from ..speckv.text_draft import DraftSpec, as_draft, draft_reference, is_text_draft

# Other libraries' names for the same fields, accepted by constructors and calls.
ALIASES = {"max_new_tokens": "max_tokens", "stop_sequences": "stop"}
# None stands for the default of these, as in other LLM classes.
DEFAULTS: dict[str, Any] = {"max_tokens": 256, "temperature": 0.0}

# Repeated in every subclass: pydantic takes the configuration of the last base class, which is the framework's.
FIELDS = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())


class EngineReference(Reference):
    """A serializable reference to an engine, which is loaded on first use and shared with parts that name the same.

    Pickling keeps names and settings, not weights. A model given as an object must be given again after unpickling.

    Args:
        model: The target: a model spec or a `SpecKV` to share.
        draft: As for `SpecKV`; None if the method needs no draft.
        method: "speckv", "speckvpc", "specpc" or "full". None: the method that `config` belongs to.
        config: The method's settings.
        positions: As for `SpecKV`.
        max_batch_size: As for `SpecKV`.
        loading: Arguments of `load_model` for models given by name.

    Attributes:
        method: The method in use.
        config: Its settings, or None with "full", which has none.
        model_name: The target's name to save.
        draft_name: The draft's name to save; "self" or None as given.
        draft: The model that drafts, or the target if no other model does.

    Raises:
        InvalidInputError: settings that do not fit the method, or settings beside a shared engine, which has its own.
    """

    def __init__(
        self,
        model: ModelSpec | SpecKV,
        draft: DraftSpec = "self",
        method: Method | None = None,
        config: MethodConfig | dict[str, Any] | None = None,
        positions: Positions = "renumber",
        max_batch_size: int = 8,
        loading: dict[str, Any] | None = None,
    ):
        self._lock = ForkSafeLock()
        self._engines: dict[str, SpecKV] = {}  # by the target's name
        self._shared = model if isinstance(model, SpecKV) else None
        if isinstance(model, SpecKV):
            if draft != "self" or config is not None or positions != "renumber":
                raise InvalidInputError(
                    "a shared SpecKV brings its own draft, config and positions; pass a model to set others"
                )
            method = "full" if model.config == FULL else method
            config, positions = model.config, model.positions
            draft = "self" if model.draft_name == "self" else model.draft
            model = model.target
        if draft is not None and is_text_draft(draft) and not isinstance(draft, str):
            draft = as_draft(draft)  # an LLM object of a framework
        self.method, self._config = as_method(method, config)
        self.config = None if self.method == "full" else self._config
        self._model, self._draft = model, None if self.method == "full" else draft
        self.positions, self.max_batch_size = positions, max_batch_size
        self.loading = {name: _as_json(value) for name, value in (loading or {}).items()}
        self.model_name = model_reference(model)
        if self._draft is None or self._draft == "self" or is_text_draft(self._draft):
            self.draft: ModelSpec = model
        else:
            self.draft = cast("ModelSpec", self._draft)
        self.draft_name = self._draft if self._draft in (None, "self") else draft_reference(self._draft)

    def get(self, model: str | None = None) -> SpecKV:
        """Return the engine; the first call loads the models, which may take long.

        Args:
            model: Another target to use with the same draft and settings. None: the part's own.

        Raises:
            InvalidInputError: a model was given as an object before the part was saved, or a draft is missing.
            ModelLoadError: as `load_model`.
        """
        name = model or self.model_name
        if (engine := self._engines.get(name)) is not None:
            return engine
        with self._lock:
            if name not in self._engines:
                self._engines[name] = self._load(name)
            return self._engines[name]

    def close(self) -> None:
        """Release the engines; memory is freed once no other part uses them. A shared `SpecKV` stays."""
        with self._lock:
            self._engines.clear()

    def _load(self, name: str) -> SpecKV:
        if name == self.model_name and self._shared is not None:
            return self._shared
        target = self._model if name == self.model_name else name
        check_loadable("model", target)
        check_loadable("draft", self._draft)
        return shared_engine(
            target, self._draft, self._config,
            positions=self.positions, max_batch_size=self.max_batch_size, **self.loading,
        )  # fmt: skip

    @property
    def models(self) -> tuple[str, str | None]:
        """What tells the target and the draft from all others, objects included."""
        return model_identity(self._model), None if self._draft is None else model_identity(self._draft)

    def __reduce__(self) -> tuple[type[EngineReference], tuple[Any, ...]]:
        names = (self.model_name, self.draft_name)
        return EngineReference, (
            *names, self.method, self.config, self.positions, self.max_batch_size, self.loading
        )  # fmt: skip


class SpecKVBase(BaseModel):
    """Base class of LLM parts: a local model behind a shared SpecKV engine.

    Models given by name are loaded at the first call. Saving keeps names and settings, never weights.

    Args:
        model: The target: a hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a
            `SpecKV` to share.
        draft: The draft model, in the same forms. "self": the target drafts for itself.
        method: "speckv" drops KV pairs, "specpc" drops prompt tokens, "speckvpc" does both, "full" drops nothing. None:
            the method that `config` belongs to, else "speckv".
        config: `SpecKVConfig`, `SpecPCConfig` or `SpecKVPCConfig`, or a dict of its fields.
        positions: Position ids of the prompt tokens that SpecPC keeps: "renumber" closes the gaps, "original" leaves
            them.
        max_tokens: Most tokens to generate per answer, >= 0; None: 256. `max_new_tokens` is accepted too.
        temperature: Sampling temperature; 0 or None is greedy decoding.
        top_p: Nucleus sampling: smallest share of probability to sample from, in (0, 1].
        top_k: Number of likeliest tokens to sample from, >= 1.
        seed: Makes sampling repeatable.
        stop: A text, or texts, before which an answer ends. `stop_sequences` is accepted too.
        timeout: Most seconds to wait for an answer.
        generate_kwargs: Further arguments of `model.generate`, such as `repetition_penalty`.
        max_batch_size: Most requests in the running batch. In half precision the number of rows can turn near-ties
            between tokens; 1 rules that out.
        loading: Arguments of `load_model` for models given by name: `device`, `dtype`, `device_map`, ...
        **fields: Fields of the framework's own base class.

    Raises:
        InvalidInputError: settings that do not fit the method.
    """

    model_config = FIELDS

    model: str = Field(frozen=True, description="Name of the target model.")
    draft: str | None = Field(default="self", frozen=True, description="Name of the draft model, or 'self'.")
    method: Method = Field(default="speckv", frozen=True, description="What is dropped.")
    config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig | None = Field(
        default=None, frozen=True, description="Settings of the method."
    )
    positions: Positions = Field(default="renumber", frozen=True, description="Position ids of kept prompt tokens.")
    max_tokens: int = Field(default=DEFAULTS["max_tokens"], description="Most tokens to generate per answer.")
    temperature: float = Field(
        default=DEFAULTS["temperature"], description="Sampling temperature; 0 is greedy decoding."
    )
    top_p: float | None = Field(default=None, description="Share of probability to sample from.")
    top_k: int | None = Field(default=None, description="Number of likeliest tokens to sample from.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: list[str] | None = Field(default=None, description="Texts before which an answer ends.")
    timeout: float | None = Field(default=None, description="Most seconds to wait for an answer.")
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="Further arguments of model.generate.")
    max_batch_size: int = Field(default=8, frozen=True, description="Most requests in the running batch.")
    loading: dict[str, Any] = Field(default_factory=dict, frozen=True, description="Arguments of load_model.")

    _reference: EngineReference = PrivateAttr()

    @field_validator(*DEFAULTS, mode="before")
    @classmethod
    def _default_of_none(cls, given: Any, info: ValidationInfo) -> Any:
        return DEFAULTS[str(info.field_name)] if given is None else given

    def __init__(
        self,
        model: ModelSpec | SpecKV = "default",
        *,
        draft: DraftSpec = "self",
        method: Method | None = None,
        config: MethodConfig | dict[str, Any] | None = None,
        positions: Positions = "renumber",
        max_tokens: int | None = 256,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        timeout: float | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        max_batch_size: int = 8,
        loading: dict[str, Any] | None = None,
        **fields: Any,
    ):
        reference = EngineReference(model, draft, method, config, positions, max_batch_size, loading)
        stop = fields.pop("stop_sequences", stop)
        super().__init__(
            model=reference.model_name,
            draft=reference.draft_name,
            method=reference.method,
            config=reference.config,
            positions=reference.positions,
            max_tokens=fields.pop("max_new_tokens", max_tokens),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=[stop] if isinstance(stop, str) else stop,
            timeout=timeout,
            generate_kwargs=generate_kwargs or {},
            max_batch_size=reference.max_batch_size,
            loading=reference.loading,
            **fields,
        )
        self._reference = reference

    @field_serializer("config")
    def _config_as_dict(self, config: MethodConfig | None) -> dict[str, Any] | None:
        return None if config is None else asdict(config)

    def load(self) -> SpecKV:
        """Load the models now instead of at the first call; return the engine."""
        return self._reference.get()

    def close(self) -> None:
        """Release the models; memory is freed once no other part uses them. The next call loads them again."""
        self._reference.close()

    @property
    def draft_spec(self) -> ModelSpec:
        """The draft to give to a retrieval part, so that both parts share one model.

        With `loading` the models are loaded first: a name alone would load a second copy with other settings.
        """
        if not self.loading:
            return self._reference.draft
        engine = self.load()
        return engine.draft if isinstance(engine.draft, LoadedModel) else engine.target

    def _options(self, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `SpecKV.submit`: the fields, overridden by `generate_kwargs`, overridden by the call's."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "timeout")
        options = {name: getattr(self, name) for name in names}
        given = {ALIASES.get(name, name): value for name, value in (self.generate_kwargs | call).items()}
        options |= {name: value for name, value in given.items() if not (value is None and name in DEFAULTS)}
        options["max_new_tokens"] = options.pop("max_tokens")
        options["stop"] = options["stop"] or ()
        return options


def _as_json(value: Any) -> Any:
    """Return a torch dtype or device as its name, which `load_model` also takes; other values unchanged."""
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
