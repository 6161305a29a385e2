"""What the LangChain LLM and the chat model share: their fields, and how a call becomes requests to the engine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from langchain_core.language_models import LangSmithParams
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from ..engine.engine import SpecKV
from ..frameworks.llm import EngineReference, SpecKVBase
from ..models.references import shown_name
from ..results import Generation

# Arguments that callers of other models give, and that mean nothing to a model in this process.
_IGNORED = {"max_retries", "stream", "streaming", "stream_usage", "strict", "parallel_tool_calls"}
_IGNORED |= {"ls_structured_output_format"}

# Given to each class by itself: LangChain's own base classes would overrule an inherited one.
FIELDS = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class LangChainSpecKVBase(SpecKVBase):
    """Fields of both classes, beside those of `SpecKVBase`.

    Args:
        max_tokens: Most tokens to write; `max_new_tokens` is another name for it.
        stop: Texts before which an answer ends.
        model_kwargs: Further arguments of `model.generate`, such as `repetition_penalty`.
        max_retries: Accepted for compatibility: there is no network to try again.
    """

    model_config = FIELDS

    max_tokens: int = Field(default=256, alias="max_new_tokens")
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    max_retries: int = 0
    streaming: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _others: dict[str, EngineReference] = PrivateAttr(default_factory=dict)

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

    def close(self) -> None:
        """Let go of the models; the memory is freed once no other part uses them. The next call loads them again."""
        super().close()
        self._others.clear()

    def _engine(self, model: str | None) -> SpecKV:
        """The engine of a call, which may name another target."""
        if model is None or model == self.model:
            return self._reference.get()
        return self._others.setdefault(model, self._reference.other(model)).get()

    def _settings(self, stop: list[str] | None, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments for `SpecKV.submit`, from the fields and what the call says instead."""
        stops = self.stop if stop is None else stop
        defaults = {"max_new_tokens": self.max_tokens, "stop": stops, **self.model_kwargs}
        settings = self._arguments(defaults, {name: value for name, value in call.items() if name not in _IGNORED})
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
            "kept_kv_bytes": generation.usage.kept_kv_bytes,
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
