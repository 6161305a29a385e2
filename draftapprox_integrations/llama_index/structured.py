"""Structured output of the LlamaIndex LLM: generation is constrained to JSON of a class's schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeVar, cast

from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import PromptTemplate

from ..chat.grammar import can_enforce
from ..chat.schemas import allow_repeated_items

dispatcher = get_dispatcher(__name__)
Shape = TypeVar("Shape", bound=BaseModel)


class StructuredLLM(FunctionCallingLLM):
    """Base class of `SpecKVLLM`: structured predictions by its `chat`, which takes `json_schema`.

    Without llguidance (extra `structured`) LlamaIndex's own programs are used, which ask for JSON and hope.
    """

    @dispatcher.span
    def structured_predict(
        self, output_cls: type[Shape], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **given: Any
    ) -> Shape:
        """Return an object of `output_cls`; generation is constrained to JSON of its schema (extra `structured`).

        Raises:
            ValueError: the answer was cut off by `max_tokens` before it was complete.
        """
        if not can_enforce():
            shaped: Shape = super().structured_predict(output_cls, prompt, llm_kwargs, **given)
            return shaped
        messages = self._extend_messages(prompt.format_messages(**given))
        response = self.chat(messages, json_schema=_schema_of(output_cls), **(llm_kwargs or {}))
        return output_cls.model_validate_json(response.message.content or "")

    @dispatcher.span
    async def astructured_predict(
        self, output_cls: type[Shape], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **given: Any
    ) -> Shape:
        """As `structured_predict`, without blocking the event loop."""
        if not can_enforce():
            shaped: Shape = await super().astructured_predict(output_cls, prompt, llm_kwargs, **given)
            return shaped
        messages = self._extend_messages(prompt.format_messages(**given))
        response = await self.achat(messages, json_schema=_schema_of(output_cls), **(llm_kwargs or {}))
        return output_cls.model_validate_json(response.message.content or "")

    @dispatcher.span
    def stream_structured_predict(
        self, output_cls: type[Shape], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **given: Any
    ) -> Generator[Shape, None, None]:
        """Stream `structured_predict`: partial objects, whose fields may be missing, then the complete one.

        Raises:
            ValueError: as `structured_predict`, after the last partial object.
        """
        if not can_enforce():
            for shaped in super().stream_structured_predict(output_cls, prompt, llm_kwargs, **given):
                yield cast(Shape, shaped)
            return
        messages, text = self._extend_messages(prompt.format_messages(**given)), ""
        for part in self.stream_chat(messages, json_schema=_schema_of(output_cls), **(llm_kwargs or {})):
            text = part.message.content or ""
            if part.raw is None:  # not the last
                yield cast(Shape, process_streaming_objects(part, output_cls))
        yield output_cls.model_validate_json(text)

    @dispatcher.span
    async def astream_structured_predict(
        self, output_cls: type[Shape], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **given: Any
    ) -> AsyncGenerator[Shape, None]:
        """As `stream_structured_predict`, without blocking the event loop."""
        if not can_enforce():
            stream: Any = await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **given)
            return cast(AsyncGenerator[Shape, None], stream)

        async def run() -> AsyncGenerator[Shape, None]:
            messages, text = self._extend_messages(prompt.format_messages(**given)), ""
            schema = _schema_of(output_cls)
            async for part in await self.astream_chat(messages, json_schema=schema, **(llm_kwargs or {})):
                text = part.message.content or ""
                if part.raw is None:
                    yield cast(Shape, process_streaming_objects(part, output_cls))
            yield output_cls.model_validate_json(text)

        return run()


def _schema_of(output_cls: type[BaseModel]) -> dict[str, Any]:
    schema: dict[str, Any] = allow_repeated_items(output_cls.model_json_schema())
    return schema
