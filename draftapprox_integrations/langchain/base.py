"""Methods shared by the LangChain chat model and LLM: serialization, cache keys, metadata, tracing parameters."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.language_models import LangSmithParams

from ..engine.engine import SpecKV
from ..frameworks.llm import ALIASES, SpecKVBase
from ..models.references import display_name
from ..results import Generation

# Arguments of other chat models' calls that have no effect on a model in this process.
_IGNORED = {"max_retries", "stream", "streaming", "stream_usage", "strict", "parallel_tool_calls"}
_IGNORED |= {"ls_structured_output_format"}


class LangChainSpecKVBase(SpecKVBase):
    """Base class of `ChatSpecKV` and LangChain's `SpecKVLLM`.

    Args, beside those of `SpecKVBase`:
        max_retries: Accepted for compatibility with API models; has no effect.
        streaming: Accepted for compatibility with API models; has no effect.
    """

    max_retries: int = 0
    streaming: bool = False

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: `langchain_core.load.dumps` saves names and settings, never weights."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Constructor arguments that `langchain_core.load.dumps` saves in another form than the field's."""
        return {"config": self._config_as_dict(self.config)}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything an answer depends on; part of the key of LangChain's cache."""
        names = (
            "model", "draft", "method", "positions", "max_tokens", "temperature", "top_p", "top_k", "seed",
            "generate_kwargs", "loading",
        )  # fmt: skip
        # LangChain overwrites "stop" with the call's, so the field needs a key of its own.
        params = {"config": self._config_as_dict(self.config), "stop": self.stop, "default_stop": self.stop}
        # Names of objects are those of their classes, which say nothing.
        models = {"models": self._reference.models}
        return {name: getattr(self, name) for name in names} | params | models

    def _call_options(self, stop: list[str] | None, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `SpecKV.submit` for one call."""
        given = {name: value for name, value in call.items() if name not in _IGNORED}
        return self._options(given if stop is None else given | {"stop": stop})

    def _metadata(self, generation: Generation, engine: SpecKV) -> dict[str, Any]:
        """Facts about an answer other than its text and token counts."""
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
        call = {ALIASES.get(name, name): value for name, value in call.items()}
        params = LangSmithParams(
            ls_provider="draftapprox",
            ls_model_type=kind,
            ls_model_name=call.get("model") or display_name(self.model),
            ls_temperature=call.get("temperature", self.temperature),
            ls_max_tokens=call.get("max_tokens", self.max_tokens),
        )
        if stops := stop or self.stop:
            params["ls_stop"] = stops
        return params
