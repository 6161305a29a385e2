"""Routers that `draftapprox serve` adds to the service: an engine behind OpenAI's interface, or a proxy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from ..config import MethodConfig
    from ..specpc.compressor import SpecPC

KEY_VARIABLE = "DRAFTAPPROX_UPSTREAM_KEY"


@dataclass(frozen=True, kw_only=True)
class Served:
    """What answers `/v1/chat/completions`, if anything does.

    Attributes:
        model: Target model to answer with.
        kv: KV pairs that SpecKV keeps per layer and head; 0: all.
        prompt_tokens: Tokens that SpecPC keeps of the prompt; None: all.
        batch: Most rows of the running batch.
        upstream: Base URL of an API to pass requests on to, with their context shortened.
        context_tokens, trigger_tokens, time_limit, unmarked: As in `ProxySettings`.

    Raises:
        InvalidInputError: both a model and an upstream are given.
    """

    model: str | None = None
    kv: int = 0
    prompt_tokens: int | None = None
    batch: int = 8
    upstream: str | None = None
    context_tokens: int | None = None
    trigger_tokens: int = 2048
    time_limit: float = 10.0
    unmarked: bool = False

    def __post_init__(self) -> None:
        if self.model is not None and self.upstream is not None:
            raise InvalidInputError("give --model to answer here, or --upstream to pass requests on, not both")

    def routers(self, compressor: SpecPC, *, has_token: bool) -> list[APIRouter]:
        """The routers.

        Args:
            compressor: Its draft writes lookaheads, it shortens the context of an upstream's requests.
            has_token: Whether clients send the service's token, which an upstream must not get.
        """
        if self.model is not None:
            return [self._engine(self.model, compressor)]
        return [] if self.upstream is None else [self._proxy(self.upstream, compressor, has_token)]

    def _engine(self, name: str, compressor: SpecPC) -> APIRouter:
        from ..engine.registry import shared_engine
        from ..models.loading import load_model
        from ..serving.completions import completions_router

        engine = shared_engine(load_model(name), compressor.draft, self.config(), max_batch_size=self.batch)
        return completions_router(engine, name=name)

    def config(self) -> MethodConfig:
        """Settings of the method that the numbers ask for."""
        from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
        from ..engine.registry import FULL

        speckv = SpecKVConfig(max_capacity_prompt=self.kv) if self.kv else FULL
        if self.prompt_tokens is None:
            return speckv
        specpc = SpecPCConfig(max_capacity_prompt=self.prompt_tokens)
        return SpecKVPCConfig(specpc_config=specpc, speckv_config=speckv) if self.kv else specpc

    def _proxy(self, upstream: str, compressor: SpecPC, has_token: bool) -> APIRouter:
        from ..serving.proxy import proxy_router
        from ..serving.proxy_settings import ProxySettings

        key = os.environ.get(KEY_VARIABLE)
        settings = ProxySettings(
            max_tokens=self.context_tokens,
            trigger_tokens=self.trigger_tokens,
            time_limit=self.time_limit,
            unmarked=self.unmarked,
            upstream_key="" if key is None and has_token else key,
        )
        return proxy_router(compressor, upstream, settings)


def read_secret(file: Path | None, variable: str) -> str | None:
    """A secret from a file, or from the environment; None where neither is given.

    Raises:
        InvalidInputError: the file or the variable is empty: a service that should have a token must not start open.
    """
    if file is None:
        given = os.environ.get(variable)
        source = f"the variable {variable}"
    else:
        given = file.read_text(encoding="utf-8")
        source = str(file)
    if given is not None and not given.strip():
        raise InvalidInputError(f"{source} holds no token; put one there, or leave it out")
    return None if given is None else given.strip()
