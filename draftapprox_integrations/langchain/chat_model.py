"""A target model with SpecKV as a LangChain chat model: messages in, messages out; tools and structured output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json import parse_partial_json

from ..chat.calls import ChatCall, prepare_chat
from ..chat.tools import Answer, ToolFilter
from ..engine.engine import SpecKV
from ..errors import InvalidInputError
from ..results import Generation
from .base import FIELDS, LangChainSpecKVBase
from .messages import from_langchain
from .structured import StructuredMethod, structured

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool


@dataclass(frozen=True)
class _Prepared:
    engine: SpecKV
    call: ChatCall
    settings: dict[str, Any]


class ChatSpecKV(LangChainSpecKVBase, BaseChatModel):
    """Chat with a local model whose KV cache keeps only what a draft's guess of the answer says will be needed.

        chat = ChatSpecKV("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct")
        chat.invoke("Which KV pairs matter?")

    Streams and serves many callers at once: waiting requests share batches, the event loop is never blocked, a
    cancelled task stops its generation. Messages go through the model's chat template. `bind_tools` works with every
    template (one that knows no tools gets them in the system message); with `tool_choice`, and in
    `with_structured_output`, the answer's JSON is enforced (extra `structured`). Fields: see
    `SpecKVBase` and `LangChainSpecKVBase`.
    """

    model_config = FIELDS

    @property
    def _llm_type(self) -> str:
        return "speckv-chat"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ready = self._prepare(messages, stop, kwargs)
        (stream,) = ready.engine.submit([ready.call.ids], **ready.settings)
        return self._result(stream.result(), ready)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ready = await asyncio.to_thread(self._prepare, messages, stop, kwargs)
        (written,) = await ready.engine.agenerate([ready.call.ids], **ready.settings)
        return self._result(written, ready)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        ready = self._prepare(messages, stop, kwargs)
        (stream,) = ready.engine.submit([ready.call.ids], **ready.settings)
        held = ToolFilter() if ready.call.tool_names else None
        for piece in stream.pieces():
            if shown := held.feed(piece) if held else piece:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=shown))
                if run_manager:
                    run_manager.on_llm_new_token(shown, chunk=chunk)
                yield chunk
        assert stream.generation is not None
        last = self._last_chunk(stream.generation, ready, held)
        if run_manager:
            run_manager.on_llm_new_token(last.text, chunk=last)
        yield last

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        ready = await asyncio.to_thread(self._prepare, messages, stop, kwargs)
        (stream,) = await ready.engine.asubmit([ready.call.ids], **ready.settings)
        held = ToolFilter() if ready.call.tool_names else None
        try:
            async for piece in stream.pieces():
                if shown := held.feed(piece) if held else piece:
                    chunk = ChatGenerationChunk(message=AIMessageChunk(content=shown))
                    if run_manager:
                        await run_manager.on_llm_new_token(shown, chunk=chunk)
                    yield chunk
        finally:
            stream.cancel()
        assert stream.generation is not None
        last = self._last_chunk(stream.generation, ready, held)
        if run_manager:
            await run_manager.on_llm_new_token(last.text, chunk=last)
        yield last

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: What LangChain can turn into a tool.
            tool_choice: None or "auto": the model decides; "none"; "any", "required" or True: it must call one; a
                tool's name: it must call this one. Where it must, the form of the call is enforced.
            **kwargs: Further arguments of the call.
        """
        if isinstance(tool_choice, dict):
            tool_choice = tool_choice.get("function", tool_choice).get("name")
        choice = "any" if tool_choice is True or tool_choice == "required" else tool_choice or "auto"
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: StructuredMethod = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers of the given shape.

        Args:
            schema: A Pydantic class, a TypedDict, or a JSON schema.
            method: "json_schema": only JSON of this schema can be written, and the model is told of it.
                "function_calling": as the arguments of a tool call, enforced as well. "json_mode": enforced,
                but your prompt tells the model what to write.
            include_raw: Return {"raw", "parsed", "parsing_error"} and do not raise if parsing fails.
            strict: Accepted for compatibility; the schema is always enforced.
            **kwargs: Further arguments of the call.
        """
        return structured(self, schema, method, include_raw, kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the target's tokenizer; loads the model."""
        ids: list[int] = self._reference.loaded().require_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None) -> int:
        """Tokens of the prompt that the chat template makes of `messages`."""
        listed = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(prepare_chat(self._reference.get(), from_langchain(messages), tools=listed).ids)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing("chat", stop, kwargs)

    def _prepare(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> _Prepared:
        call = dict(kwargs)
        engine = self._engine(call.pop("model", None))
        schema, tell = _wanted_schema(call.pop("response_format", None))
        ready = prepare_chat(
            engine,
            from_langchain(messages),
            tools=call.pop("tools", None) or (),
            tool_choice=call.pop("tool_choice", "auto"),
            schema=schema,
            tell=tell,
            template_options=call.pop("chat_template_kwargs", None),
        )
        return _Prepared(engine, ready, self._settings(stop, call) | ready.options)

    def _result(self, written: Generation, ready: _Prepared) -> ChatResult:
        answer = ready.call.read(written.text)
        message = AIMessage(
            content=answer.text,
            tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in answer.calls],
            invalid_tool_calls=_invalid(answer),
            usage_metadata=_usage(written),
            response_metadata=self._metadata(written, ready.engine),
        )
        info = {"finish_reason": written.finish_reason}
        return ChatResult(
            generations=[ChatGeneration(message=message, generation_info=info)],
            llm_output={"model_name": message.response_metadata["model_name"], "token_usage": dict(_usage(written))},
        )

    def _last_chunk(self, written: Generation, ready: _Prepared, held: ToolFilter | None) -> ChatGenerationChunk:
        answer = ready.call.read(written.text)
        calls = [
            tool_call_chunk(
                name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=index
            )
            for index, call in enumerate(answer.calls)
        ]
        calls += [
            tool_call_chunk(name=bad.name, args=_unreadable(bad.text), id=None, index=len(answer.calls) + index)
            for index, bad in enumerate(answer.invalid)
        ]
        message = AIMessageChunk(
            content=held.rest(answer) if held else "",
            tool_call_chunks=calls,
            usage_metadata=_usage(written),
            response_metadata=self._metadata(written, ready.engine),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info={"finish_reason": written.finish_reason})


def _usage(written: Generation) -> UsageMetadata:
    usage = written.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details={"kept_kv": usage.kept_kv, "kept_prompt_tokens": usage.kept_prompt_tokens},  # type: ignore[typeddict-unknown-key]
    )


def _invalid(answer: Answer) -> list[Any]:
    return [invalid_tool_call(name=bad.name, args=bad.text, id=None, error=bad.error) for bad in answer.invalid]


def _unreadable(text: str) -> str:
    """Text of a failed call for a stream; LangChain would complete JSON that was cut off and take it for a call."""
    try:
        is_call = isinstance(parse_partial_json(text), dict)
    except ValueError:
        is_call = False
    return json.dumps(text, ensure_ascii=False) if is_call else text


def _wanted_schema(response_format: Any) -> tuple[dict[str, Any] | None, bool]:
    """The JSON schema that `response_format` (OpenAI's layout) asks for, and whether the model is to be told of it."""
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if response_format is None or kind == "text":
        return None, False
    if kind == "json_object":  # "schema" goes beyond OpenAI's layout: it is known, so it is enforced
        return response_format.get("schema") or {"type": "object"}, False
    if kind == "json_schema":
        return response_format["json_schema"]["schema"], True
    raise InvalidInputError(
        f'response_format must be {{"type": "json_object"}} or {{"type": "json_schema", ...}}; got {response_format!r}'
    )
