"""What the LangChain LLM and the chat model share: their fields, and how a call becomes requests to the engine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from langchain_core.language_models import LangSmithParams
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..models import ModelSpec
from ..naming import shown_name
from ..results import Generation
from ..speckv.generator import SpecKV
from ..speckv.slot import DraftSpec, GeneratorSlot, Method

# Arguments that callers of other models give, and that mean nothing to a model in this process.
_IGNORED = {"max_retries", "stream", "streaming", "stream_usage", "strict", "parallel_tool_calls"}
_IGNORED |= {"ls_structured_output_format"}

# Given to each class by itself: LangChain's own base classes would overrule an inherited one.
FIELDS = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class Served(BaseModel):
    """Fields of a part that serves a target model through the shared engine.

    Args:
        model: The target: a hub id, folder, GGUF file, "default", a loaded model, a `(model, tokenizer)` pair, or a
            `SpecKV` to share. A name is loaded on first use.
        draft: The same for the draft; "self": the target drafts for itself.
        method: "speckv", "speckvpc" (SpecPC first), "specpc", or "full" (nothing dropped). None follows `config`.
        config: `SpecKVConfig`, `SpecKVPCConfig` or `SpecPCConfig`.
        max_tokens: Most tokens to write; `max_new_tokens` is another name for it.
        temperature: 0 is greedy.
        top_p, top_k, seed: Of sampling.
        stop: Texts before which an answer ends.
        timeout: Most seconds to wait for an answer.
        model_kwargs: Further arguments of `model.generate`, such as `repetition_penalty`.
        loading: Arguments of `load_model` for names: `device`, `dtype`, `device_map`, `trust_remote_code`, `revision`.
        max_batch_size: Most waiting requests that are served as one batch. With 1 no answer depends on the company it
            had; with more, sums in another order may turn near-ties in half precision.
        max_retries: Accepted for compatibility: there is no network to try again.

    Raises:
        InvalidInputError: settings that do not fit the method.
    """

    model_config = FIELDS

    model: str = Field(frozen=True)
    draft: str | None = Field(default="self", frozen=True)
    method: Method = Field(default="speckv", frozen=True)
    config: SpecKVConfig | SpecKVPCConfig | SpecPCConfig | None = Field(default=None, frozen=True)
    max_tokens: int = Field(default=256, alias="max_new_tokens")
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    timeout: float | None = None
    max_retries: int = 0
    streaming: bool = False
    max_batch_size: int = Field(default=8, frozen=True)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    loading: dict[str, Any] = Field(default_factory=dict, frozen=True)

    _slot: GeneratorSlot = PrivateAttr()
    _others: dict[str, GeneratorSlot] = PrivateAttr(default_factory=dict)

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
        slot = GeneratorSlot(model, draft, method, config, max_batch_size, loading)
        super().__init__(
            model=slot.model_name,
            draft=slot.draft_name,
            method=slot.method,
            config=slot.config_to_save(),
            max_batch_size=slot.max_batch_size,
            loading=slot.loading,
            **fields,
        )
        self._slot = slot

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on: the key of LangChain's cache."""
        names = ("model", "draft", "method", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
        config = None if self.config is None else asdict(self.config)
        return {name: getattr(self, name) for name in names} | {"config": config, "model_kwargs": self.model_kwargs}

    def load(self) -> SpecKV:
        """Load the models now rather than at the first call, and return the engine."""
        return self._slot.get()

    def close(self) -> None:
        """Let go of the models; the memory is freed once no other part uses them. The next call loads them again."""
        self._slot.close()
        self._others.clear()

    def _engine(self, model: str | None) -> SpecKV:
        """The engine of a call, which may name another target."""
        if model is None or model == self.model:
            return self._slot.get()
        return self._others.setdefault(model, self._slot.other(model)).get()

    def _settings(self, stop: list[str] | None, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments for `SpecKV.submit`, from the fields and what the call says instead."""
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "timeout": self.timeout,
            "stop": self.stop if stop is None else stop,
            **self.model_kwargs,
        }
        call = {name: value for name, value in call.items() if name not in _IGNORED}
        if "max_tokens" in call:
            call["max_new_tokens"] = call.pop("max_tokens")
        settings |= call
        settings["stop"] = settings["stop"] or ()
        return settings

    def _metadata(self, generation: Generation, engine: SpecKV) -> dict[str, Any]:
        """What is known of an answer beside its text and token counts."""
        return {
            "model_name": engine.target.source or engine.target.name,
            "model_provider": "draftapprox",
            "finish_reason": generation.finish_reason,
            "method": self.method,
            "kept_kv": generation.usage.kept_kv,
            "kept_prompt_tokens": generation.usage.kept_prompt_tokens,
            "timings": generation.timings,
        }

    def _tracing(self, kind: Literal["llm", "chat"], stop: list[str] | None, call: dict[str, Any]) -> LangSmithParams:
        """Standard parameters for tracers."""
        params = LangSmithParams(
            ls_provider="draftapprox",
            ls_model_type=kind,
            ls_model_name=call.get("model") or shown_name(self.model),
            ls_temperature=call.get("temperature", self.temperature),
            ls_max_tokens=call.get("max_tokens", call.get("max_new_tokens", self.max_tokens)),
        )
        if stops := stop or self.stop:
            params["ls_stop"] = stops
        return params
