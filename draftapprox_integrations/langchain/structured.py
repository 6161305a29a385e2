"""Answers of a given shape, as a chain of the chat model and a parser."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .chat_model import ChatSpecKV

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    chat: ChatSpecKV, schema: Any, method: StructuredMethod, include_raw: bool, call: dict[str, Any]
) -> Runnable[LanguageModelInput, Any]:
    """The chain behind `ChatSpecKV.with_structured_output`.

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
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    elif method in ("json_schema", "json_mode"):
        wanted: dict[str, Any] = {"type": "json_object", "schema": json_schema}
        if method == "json_schema":
            wanted = {"type": "json_schema", "json_schema": {"name": json_schema.get("title"), "schema": json_schema}}
        model = chat.bind(response_format=wanted, ls_structured_output_format=shown, **call)
        parser = PydanticOutputParser(pydantic_object=schema) if is_pydantic else JsonOutputParser()
    else:
        raise InvalidInputError(f"method must be 'json_schema', 'function_calling' or 'json_mode'; got {method!r}")
    if not include_raw:
        chain: Runnable[LanguageModelInput, Any] = model | parser
        return chain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
