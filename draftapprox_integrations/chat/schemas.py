"""Prepare JSON schemas for constrained decoding: closed objects, tool calls, an answer or a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InvalidInputError

Schema = dict[str, Any]

# Keywords whose value holds schemas. Everything else is data, such as "enum", "default" and "examples".
_OF_SCHEMAS = {
    "items", "additionalItems", "prefixItems", "unevaluatedItems", "contains", "additionalProperties",
    "unevaluatedProperties", "propertyNames", "anyOf", "oneOf", "allOf", "not", "if", "then", "else",
}  # fmt: skip
_OF_NAMED_SCHEMAS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}


def map_schema(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """Return a copy of a schema in which `change` was applied to it and to every schema inside, the inner ones first.

    A value that is no object or list, such as `false`, is returned unchanged.
    """
    if isinstance(schema, list):
        return [map_schema(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {}
    for key, value in schema.items():
        if key in _OF_SCHEMAS:
            value = map_schema(value, change)
        elif key in _OF_NAMED_SCHEMAS and isinstance(value, dict):
            value = {name: map_schema(inner, change) for name, inner in value.items()}
        changed[key] = value
    return change(changed)


def close_objects(schema: Any) -> Any:
    """Return `schema` with `additionalProperties: false` added to objects that list properties and do not set it.

    Otherwise small models keep inventing keys.
    """
    return map_schema(schema, _close)


def allow_repeated_items(schema: Any) -> Any:
    """Return `schema` without `uniqueItems`, which cannot be enforced, for JSON that is validated afterwards.

    Pydantic makes sets of such lists, so that repeated items do no harm.
    """
    return map_schema(schema, lambda inner: {key: value for key, value in inner.items() if key != "uniqueItems"})


def call_schema(tools: Sequence[dict[str, Any]], name: str | None = None) -> Schema:
    """Return the JSON schema of a call of any of `tools` (OpenAI's format), or of the tool called `name`.

    Repeated items are allowed: the tool validates its arguments.

    Raises:
        InvalidInputError: there is no tool of this name.
    """
    functions = [tool.get("function", tool) for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        known = ", ".join(function["name"] for function in functions)
        raise InvalidInputError(f"tool_choice names {name!r}; there are: {known}")
    inner: dict[str, Any] = {}
    calls = []
    for index, function in enumerate(chosen):
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        inner[f"tool{index}"] = _moved(allow_repeated_items(parameters), f"tool{index}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/tool{index}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | {"$defs": inner}


def answer_or_call_schema(answer: Schema, tools: Sequence[dict[str, Any]]) -> Schema:
    """Return the JSON schema of either an `answer` or a call of one of `tools`."""
    calls = call_schema(tools)
    inner = calls.pop("$defs") | {"answer": _moved(answer, "answer")}
    return {"anyOf": [{"$ref": "#/$defs/answer"}, *calls.get("anyOf", [calls])], "$defs": inner}


def _moved(schema: Schema, name: str) -> Schema:
    """Return a schema for the place `#/$defs/name` of another one: its references to itself follow it there."""

    def follow(inner: Schema) -> Schema:
        target = inner.get("$ref")
        if isinstance(target, str) and target.startswith("#"):
            return inner | {"$ref": f"#/$defs/{name}{target[1:]}"}
        return inner

    moved: Schema = map_schema(schema, follow)
    return moved


def _close(schema: Schema) -> Schema:
    kinds = schema.get("type", "object")
    listed = isinstance(schema.get("properties"), dict) and "object" in (kinds if isinstance(kinds, list) else [kinds])
    return {"additionalProperties": False} | schema if listed else schema
