"""Structured output: a chain of a chat model, constrained to a schema, and a parser."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from ..chat.schemas import allow_repeated_items
from ..errors import InvalidInputError

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]


class _CompleteJson(JsonOutputParser):
    """JSON parser that refuses an incomplete answer; LangChain's would complete it, so half a number would pass."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _check_complete(result[0].text)
        return super().parse_result(result, partial=partial)


class _CompleteObject(PydanticOutputParser[Any]):
    """As `_CompleteJson`, for Pydantic classes."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _check_complete(result[0].text)
        return super().parse_result(result, partial=partial)


class _CompleteCall(PydanticToolsParser):
    """Tool call parser that refuses an incomplete call; LangChain's would return None."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _check_called(result[0])
        return super().parse_result(result, partial=partial)


class _CompleteKeyedCall(JsonOutputKeyToolsParser):
    """As `_CompleteCall`, for schemas that are not Pydantic classes."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _check_called(result[0])
        return super().parse_result(result, partial=partial)


def structured(
    chat: BaseChatModel, schema: Any, method: StructuredMethod, include_raw: bool, call: dict[str, Any]
) -> Runnable[LanguageModelInput, Any]:
    """Return the chain for `ChatSpecKV.with_structured_output`.

    Raises:
        InvalidInputError: an unknown method.
    """
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    json_schema = convert_to_json_schema(schema)
    shown = {"kwargs": {"method": method}, "schema": json_schema}
    parser: Any
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        model = chat.bind_tools([schema], tool_choice=name, ls_structured_output_format=shown, **call)
        if is_pydantic:
            parser = _CompleteCall(tools=[schema], first_tool_only=True)
        else:
            parser = _CompleteKeyedCall(key_name=name, first_tool_only=True)
    elif method in ("json_schema", "json_mode"):
        if is_pydantic:
            json_schema = allow_repeated_items(json_schema)
        wanted: dict[str, Any] = {"type": "json_object", "schema": json_schema}
        if method == "json_schema":
            wanted = {"type": "json_schema", "json_schema": {"name": json_schema.get("title"), "schema": json_schema}}
        model = chat.bind(response_format=wanted, ls_structured_output_format=shown, **call)
        parser = _CompleteObject(pydantic_object=schema) if is_pydantic else _CompleteJson()
    else:
        raise InvalidInputError(f"method must be 'json_schema', 'function_calling' or 'json_mode'; got {method!r}")
    if not include_raw:
        chain: Runnable[LanguageModelInput, Any] = model | parser
        return chain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _check_complete(text: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise _incomplete(text) from error


def _check_called(generation: Generation) -> None:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    if isinstance(message, AIMessage) and not message.tool_calls:
        partial_call = "".join(call["args"] or "" for call in message.invalid_tool_calls)
        raise _incomplete(partial_call)


def _incomplete(text: str) -> OutputParserException:
    return OutputParserException(
        f"the answer was cut off before its JSON was complete; raise max_tokens. It began: {text!r}", llm_output=text
    )
