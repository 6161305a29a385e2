"""SpecKV as a LangChain chat model: messages in, messages out, with tools and structured output."""

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
from pydantic import BaseModel

from ..chat.calls import ChatCall, prepare_chat
from ..chat.response_format import wanted_schema
from ..chat.tool_choice import as_tool_choice, forbids_parallel_calls
from ..chat.tools import ParsedAnswer, ToolCallFilter
from ..engine.engine import SpecKV
from ..frameworks.llm import FIELDS, SpecKVBase
from ..frameworks.signatures import inherit_constructor
from ..results import Generation
from .base import LangChainSpecKVBase
from .messages import from_langchain
from .profile import model_profile
from .structured import StructuredMethod, structured

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool


@dataclass(frozen=True)
class _Prepared:
    engine: SpecKV
    call: ChatCall
    settings: dict[str, Any]


class ChatSpecKV(LangChainSpecKVBase, BaseChatModel):
    """Chat model with a KV cache of fixed size: a draft's lookahead of the answer selects the KV pairs to keep.

        chat = ChatSpecKV("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct")
        chat.invoke("Which KV pairs matter?")

    Concurrent requests share a batch, the event loop is never blocked, and cancelling a task stops its generation.
    Messages are rendered by the model's chat template. `bind_tools` works with every template: one without tools gets
    them in the system message. `tool_choice` and `with_structured_output` enforce the answer's JSON (extra
    `structured`). `profile` is None until the models are loaded, unless it was passed.

    The arguments are those of `LangChainSpecKVBase`.
    """

    model_config = FIELDS

    @inherit_constructor(SpecKVBase.__init__)
    def __init__(self) -> None: ...

    def load(self) -> SpecKV:
        """Load the models now instead of at the first call, and fill `profile`; return the engine."""
        engine = super().load()
        if self.profile is None:
            self.profile = model_profile(engine.target)
        return engine

    def __eq__(self, other: object) -> bool:
        """Compare settings; `profile` describes the model and is not one of them."""
        if not isinstance(other, ChatSpecKV):
            return NotImplemented
        mine, theirs = (part.model_copy(update={"profile": None}) for part in (self, other))
        return BaseModel.__eq__(mine, theirs)

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
        (written,) = ready.engine.generate([ready.call.ids], **ready.settings)
        return self._result(written, ready)

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
        withheld = ready.call.stream_filter()
        for piece in stream.pieces():
            if shown := withheld.feed(piece) if withheld else piece:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=shown))
                if run_manager:
                    run_manager.on_llm_new_token(shown, chunk=chunk)
                yield chunk
        assert stream.generation is not None
        last = self._last_chunk(stream.generation, ready, withheld)
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
        withheld = ready.call.stream_filter()
        try:
            async for piece in stream.pieces():
                if shown := withheld.feed(piece) if withheld else piece:
                    chunk = ChatGenerationChunk(message=AIMessageChunk(content=shown))
                    if run_manager:
                        await run_manager.on_llm_new_token(shown, chunk=chunk)
                    yield chunk
        finally:
            stream.cancel()
        assert stream.generation is not None
        last = self._last_chunk(stream.generation, ready, withheld)
        if run_manager:
            await run_manager.on_llm_new_token(last.text, chunk=last)
        yield last

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a Runnable in which the model may call tools.

        Args:
            tools: Functions, classes, tools or schemas that LangChain converts to tools.
            tool_choice: None or "auto": the model decides. "none": no call. "any", "required" or True: at least one
                call. A tool's name: a call of that tool. OpenAI's and Anthropic's dicts say the same. The form of a
                required call is enforced.
            parallel_tool_calls: False: an answer has one call at most, the first that the model writes.
            **kwargs: Further arguments of each call.

        Raises:
            InvalidInputError: an unknown `tool_choice`.
        """
        choice = as_tool_choice(tool_choice)
        if parallel_tool_calls is None and forbids_parallel_calls(tool_choice):
            parallel_tool_calls = False
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
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
        """Return a Runnable whose answers match a schema.

        Args:
            schema: A Pydantic class, a TypedDict, or a JSON schema.
            method: "json_schema": generation is constrained to JSON of the schema, and the system message shows the
                schema. "function_calling": the answer is the arguments of an enforced tool call. "json_mode": enforced,
                but the schema is not shown to the model.
            include_raw: Return {"raw", "parsed", "parsing_error"} and do not raise if parsing fails.
            strict: Accepted for compatibility; the schema is always enforced.
            **kwargs: Further arguments of each call.
        """
        return structured(self, schema, method, include_raw, kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` by the target's tokenizer; loads the model."""
        ids: list[int] = self.load().target.require_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None) -> int:
        """Number of tokens of `messages` rendered by the chat template; 0 without messages. Loads the model."""
        if not messages:
            return 0
        listed = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(prepare_chat(self.load(), from_langchain(messages), tools=listed).ids)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing("chat", stop, kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The base class serializes a model once, so its cache key would miss later changes of fields.
        return str(sorted(self._get_invocation_params(stop=stop, **kwargs).items()))

    def _prepare(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> _Prepared:
        call = dict(kwargs)
        model = call.pop("model", None)
        engine = self.load() if model in (None, self.model) else self._reference.get(model)
        schema, show_schema = wanted_schema(call.pop("response_format", None))
        ready = prepare_chat(
            engine,
            from_langchain(messages),
            tools=call.pop("tools", None) or (),
            tool_choice=call.pop("tool_choice", None),
            parallel_tool_calls=call.pop("parallel_tool_calls", None),
            schema=schema,
            show_schema=show_schema,
            template_options=call.pop("chat_template_kwargs", None),
        )
        return _Prepared(engine, ready, self._call_options(stop, call) | ready.options)

    def _result(self, written: Generation, ready: _Prepared) -> ChatResult:
        parsed = ready.call.parse(written.text)
        message = AIMessage(
            content=parsed.text,
            tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in parsed.calls],
            invalid_tool_calls=_invalid(parsed),
            usage_metadata=_usage(written),
            response_metadata=self._metadata(written, ready.engine),
        )
        info = {"finish_reason": written.finish_reason}
        return ChatResult(
            generations=[ChatGeneration(message=message, generation_info=info)],
            llm_output={"model_name": message.response_metadata["model_name"], "token_usage": dict(_usage(written))},
        )

    def _last_chunk(
        self, written: Generation, ready: _Prepared, withheld: ToolCallFilter | None
    ) -> ChatGenerationChunk:
        parsed = ready.call.parse(written.text)
        calls = [
            tool_call_chunk(
                name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=index
            )
            for index, call in enumerate(parsed.calls)
        ]
        calls += [
            tool_call_chunk(name=bad.name, args=_unreadable(bad.text), id=None, index=len(parsed.calls) + index)
            for index, bad in enumerate(parsed.invalid)
        ]
        message = AIMessageChunk(
            content=withheld.rest(parsed) if withheld else "",
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


def _invalid(parsed: ParsedAnswer) -> list[Any]:
    return [invalid_tool_call(name=bad.name, args=bad.text, id=None, error=bad.error) for bad in parsed.invalid]


def _unreadable(text: str) -> str:
    """Return a failed call's text for a stream, quoted if LangChain would complete its JSON to a valid call."""
    try:
        is_call = isinstance(parse_partial_json(text), dict)
    except ValueError:
        is_call = False
    return json.dumps(text, ensure_ascii=False) if is_call else text
