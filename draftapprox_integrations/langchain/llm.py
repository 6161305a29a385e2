"""SpecKV as a LangChain LLM: text in, text out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from ..engine.engine import SpecKV
from ..frameworks.llm import FIELDS, SpecKVBase
from ..frameworks.signatures import inherit_constructor
from ..results import Generation as Written
from .base import LangChainSpecKVBase


class SpecKVLLM(LangChainSpecKVBase, BaseLLM):
    """LLM with a KV cache of fixed size: a draft's lookahead of the answer selects the KV pairs to keep.

        llm = SpecKVLLM("Qwen/Qwen2.5-14B", draft="Qwen/Qwen2.5-0.5B", config=SpecKVConfig(max_capacity_prompt=512))
        llm.invoke("The capital of France is")

    Prompts of a list share a batch. They reach the model unchanged; for instruct models use `ChatSpecKV`.

    The arguments are those of `LangChainSpecKVBase`.
    """

    model_config = FIELDS

    @inherit_constructor(SpecKVBase.__init__)
    def __init__(self) -> None: ...

    @property
    def _llm_type(self) -> str:
        return "speckv"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = self._reference.get(kwargs.pop("model", None))
        return self._result(engine.generate(prompts, **self._call_options(stop, kwargs)), engine)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        engine = await asyncio.to_thread(self._reference.get, kwargs.pop("model", None))
        return self._result(await engine.agenerate(prompts, **self._call_options(stop, kwargs)), engine)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        engine = self._reference.get(kwargs.pop("model", None))
        (stream,) = engine.submit(prompt, **self._call_options(stop, kwargs))
        for piece in stream.pieces():
            chunk = GenerationChunk(text=piece)
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        assert stream.generation is not None
        yield GenerationChunk(text="", generation_info=self._info(stream.generation, engine))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        engine = await asyncio.to_thread(self._reference.get, kwargs.pop("model", None))
        (stream,) = await engine.asubmit(prompt, **self._call_options(stop, kwargs))
        pieces = stream.pieces()
        try:
            async for piece in pieces:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        finally:
            stream.cancel()
        assert stream.generation is not None
        yield GenerationChunk(text="", generation_info=self._info(stream.generation, engine))

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` by the target's tokenizer; loads the model."""
        ids: list[int] = self.load().target.require_tokenizer()(text)["input_ids"]
        return ids

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing("llm", stop, kwargs)

    def _info(self, written: Written, engine: SpecKV) -> dict[str, Any]:
        counts = {
            "prompt_tokens": written.usage.prompt_tokens,
            "completion_tokens": written.usage.completion_tokens,
            "total_tokens": written.usage.prompt_tokens + written.usage.completion_tokens,
        }
        return self._metadata(written, engine) | {"token_usage": counts}

    def _result(self, all_written: list[Written], engine: SpecKV) -> LLMResult:
        infos = [self._info(written, engine) for written in all_written]
        generations = [
            [Generation(text=written.text, generation_info=info)]
            for written, info in zip(all_written, infos, strict=True)
        ]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        usage = {name: sum(info["token_usage"][name] for info in infos) for name in names}
        model = engine.target.source or engine.target.name
        return LLMResult(generations=generations, llm_output={"token_usage": usage, "model_name": model})
