"""What the LLM classes of every framework share: their fields, their engine, the arguments of a call.

The one module outside the frameworks' packages that needs pydantic, which both bring.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from .config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from .models import ModelSpec
from .speckv.generator import SpecKV
from .speckv.slot import DraftSpec, GeneratorSlot, Method


class Served(BaseModel):
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

    _slot: GeneratorSlot = PrivateAttr()

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

    def load(self) -> SpecKV:
        """Load the models now rather than at the first call, and return the engine."""
        return self._slot.get()

    def close(self) -> None:
        """Let go of the models; the memory is freed once no other part uses them. The next call loads them again."""
        self._slot.close()

    @property
    def draft_spec(self) -> ModelSpec:
        """What a retrieval part takes as its draft to use the same model as this one."""
        return self._slot.draft_spec

    def guess_tokens(self, max_new_tokens: int) -> int:
        """How long a guess this part would have its draft write: what a retrieval part may leave for it."""
        config = self._slot.config
        return config.resolved_lookahead(max_new_tokens) if isinstance(config, SpecKVConfig) else 0

    def _arguments(self, defaults: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
        """Arguments for `SpecKV.submit`: the fields, then a framework's `defaults`, then what the call says."""
        names = ("temperature", "top_p", "top_k", "seed", "timeout")
        if "max_tokens" in call:  # the name that OpenAI's API has for it
            call = {**call, "max_new_tokens": call["max_tokens"]}
            del call["max_tokens"]
        return {name: getattr(self, name) for name in names} | defaults | call
