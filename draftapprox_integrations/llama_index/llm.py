"""SpecKV as a LlamaIndex LLM: completion and chat, streaming, tools, structured output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt

from ..chat.calls import ChatCall, describe_schema, prepare_chat, prepare_text
from ..chat.template import has_chat_template, renders_tools
from ..engine.engine import SpecKV
from ..errors import InvalidInputError
from ..frameworks.llm import FIELDS, SpecKVBase
from ..frameworks.signatures import inherit_constructor
from ..models.references import display_name
from .messages import from_llama_index, tool_calls_of
from .responses import chat_response, completion, part_response
from .structured import StructuredLLM

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class SpecKVLLM(SpecKVBase, StructuredLLM):
    """LLM with a KV cache of fixed size: a draft's lookahead of the answer selects the KV pairs to keep.

        Settings.llm = SpecKVLLM("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct")

    If the model has a chat template, `complete` sends the prompt as a user message, as LlamaIndex's query engines
    expect; `complete(prompt, formatted=True)` sends it unchanged. `system_prompt`, `completion_to_prompt` and
    `messages_to_prompt` work as in `HuggingFaceLLM`: the functions take the place of the chat template. Concurrent
    requests share a batch, the event loop is never blocked, and closing a stream stops its generation. Pickling and
    `to_dict` save names and settings, never weights.

    Args, beside those of `SpecKVBase`:
        context_window: Most tokens that LlamaIndex packs into a prompt. None: the model's window.
    """

    # LlamaIndex's base classes ignore unknown names; a misspelt setting must raise instead.
    model_config = FIELDS

    context_window: int | None = Field(default=None, description="Most tokens of a prompt.")

    @inherit_constructor(SpecKVBase.__init__)
    def __init__(self) -> None: ...

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SpecKVLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Window, answer length and abilities, which LlamaIndex reads before it builds a prompt; loads the model."""
        loaded = self.load().target
        tokenizer = loaded.require_tokenizer()
        return LLMMetadata(
            context_window=self.context_window or loaded.context_window,
            num_output=self.max_tokens,
            is_chat_model=has_chat_template(tokenizer),
            is_function_calling_model=renders_tools(tokenizer),
            model_name=display_name(self.model),
        )

    # ------------------------------------------------------------------ chat

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the assistant's next message."""
        engine, call, settings = self._prepare_chat(messages, kwargs)
        (written,) = engine.generate([call.ids], **settings)
        return chat_response(written, call)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream the assistant's next message."""

        def run() -> Generator[ChatResponse, None, None]:
            engine, call, settings = self._prepare_chat(messages, kwargs)
            (stream,) = engine.submit([call.ids], **settings)
            withheld, text = call.stream_filter(), ""
            for piece in stream.pieces():
                if shown := withheld.feed(piece) if withheld else piece:
                    text += shown
                    yield part_response(text, shown)
            assert stream.generation is not None
            yield chat_response(stream.generation, call, withheld)

        return run()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, without blocking the event loop."""
        engine, call, settings = await asyncio.to_thread(self._prepare_chat, messages, kwargs)
        (written,) = await engine.agenerate([call.ids], **settings)
        return chat_response(written, call)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, without blocking the event loop."""

        async def run() -> AsyncGenerator[ChatResponse, None]:
            engine, call, settings = await asyncio.to_thread(self._prepare_chat, messages, kwargs)
            (stream,) = await engine.asubmit([call.ids], **settings)
            withheld, text = call.stream_filter(), ""
            try:
                async for piece in stream.pieces():
                    if shown := withheld.feed(piece) if withheld else piece:
                        text += shown
                        yield part_response(text, shown)
            finally:
                stream.cancel()
            assert stream.generation is not None
            yield chat_response(stream.generation, call, withheld)

        return run()

    # ------------------------------------------------------------------ completion

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return a completion of `prompt`; with `formatted` the chat template is not applied."""
        engine, ids, settings = self._prepare_completion(prompt, formatted, kwargs)
        (written,) = engine.generate([ids], **settings)
        return completion(written)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Stream a completion of `prompt`."""

        def run() -> Generator[CompletionResponse, None, None]:
            engine, ids, settings = self._prepare_completion(prompt, formatted, kwargs)
            (stream,) = engine.submit([ids], **settings)
            text = ""
            for piece in stream.pieces():
                text += piece
                yield CompletionResponse(text=text, delta=piece)
            assert stream.generation is not None
            yield completion(stream.generation, delta="")

        return run()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, without blocking the event loop."""
        engine, ids, settings = await asyncio.to_thread(self._prepare_completion, prompt, formatted, kwargs)
        (written,) = await engine.agenerate([ids], **settings)
        return completion(written)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, without blocking the event loop."""

        async def run() -> AsyncGenerator[CompletionResponse, None]:
            engine, ids, settings = await asyncio.to_thread(self._prepare_completion, prompt, formatted, kwargs)
            (stream,) = await engine.asubmit([ids], **settings)
            text = ""
            try:
                async for piece in stream.pieces():
                    text += piece
                    yield CompletionResponse(text=text, delta=piece)
            finally:
                stream.cancel()
            assert stream.generation is not None
            yield completion(stream.generation, delta="")

        return run()

    # ------------------------------------------------------------------ tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        call = {
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": "any" if tool_required else "auto",
            "parallel_tool_calls": allow_parallel_tool_calls,
        }
        return {"messages": messages} | call | kwargs

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the tool calls of a response.

        Raises:
            ValueError: there is none, and `error_on_no_tool_call` is True.
        """
        calls = tool_calls_of(response.message)
        if not calls and error_on_no_tool_call:
            written = response.message.content or response.additional_kwargs.get("invalid_tool_calls")
            raise ValueError(f"Expected at least one tool call, but the model answered: {written!r}")
        return [ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in calls]

    # ------------------------------------------------------------------ inside

    def _prepare_chat(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[SpecKV, ChatCall, dict[str, Any]]:
        call = dict(kwargs)
        engine = self.load()
        names = ("tools", "tool_choice", "parallel_tool_calls", "json_schema", "chat_template_kwargs")
        tools, tool_choice, parallel, schema, template_options = (call.pop(name, None) for name in names)
        if self.messages_to_prompt not in (None, generic_messages_to_prompt):
            if tools or template_options:
                raise InvalidInputError(
                    "messages_to_prompt takes the place of the chat template, so that tools and chat_template_kwargs "
                    "cannot reach the model; leave messages_to_prompt out"
                )
            ready = prepare_text(engine, self._written_by(messages, schema), schema)
            return engine, ready, self._options(call) | ready.options
        ready = prepare_chat(
            engine,
            from_llama_index(messages),
            tools=tools or (),
            tool_choice=tool_choice,
            parallel_tool_calls=parallel,
            schema=schema,
            template_options=template_options,
        )
        return engine, ready, self._options(call) | ready.options

    def _prepare_completion(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[SpecKV, list[int], dict[str, Any]]:
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInputError("the prompt is empty; give at least one character")
        engine = self.load()
        tokenizer = engine.target.require_tokenizer()
        if not formatted and self.completion_to_prompt not in (None, default_completion_to_prompt):
            wrapped = self._wrapped(prompt)
            return engine, prepare_text(engine, self.completion_to_prompt(wrapped)).ids, self._options(kwargs)
        if not formatted and has_chat_template(tokenizer):
            messages = [ChatMessage(role=MessageRole.USER, content=self._wrapped(prompt))]
            _, ready, settings = self._prepare_chat(self._extend_messages(messages), kwargs)
            return engine, ready.ids, settings
        text = prompt if formatted else self._extend_prompt(prompt)
        return engine, prepare_text(engine, text).ids, self._options(kwargs)

    def _wrapped(self, prompt: str) -> str:
        wrapper = self.query_wrapper_prompt
        return prompt if wrapper is None else str(wrapper.format(query_str=prompt))

    def _written_by(self, messages: Sequence[ChatMessage], schema: dict[str, Any] | None) -> str:
        """Return the prompt that `messages_to_prompt` makes of a conversation and a wanted schema."""
        shown = [] if schema is None else [ChatMessage(role=MessageRole.SYSTEM, content=describe_schema(schema))]
        assert self.messages_to_prompt is not None
        return str(self.messages_to_prompt([*shown, *messages]))
