"""Read `response_format` as OpenAI's interface writes it."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInputError


def wanted_schema(response_format: Any) -> tuple[dict[str, Any] | None, bool]:
    """Return the JSON schema that the answer must have, and whether to show it to the model.

    Args:
        response_format: None or `{"type": "text"}`: no schema. `{"type": "json_object"}`: any object; a "schema" beside
            it, which extends OpenAI's layout, is enforced and not shown. `{"type": "json_schema", "json_schema":
            {"schema": ...}}`: enforced and shown.

    Raises:
        InvalidInputError: anything else.
    """
    given = response_format if isinstance(response_format, dict) else {}
    kind = given.get("type")
    if response_format is None or kind == "text":
        return None, False
    if kind == "json_object":
        return _as_schema(given.get("schema") or {"type": "object"}, '"schema"'), False
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        return _as_schema(schema, '{"type": "json_schema", "json_schema": {"schema": ...}}'), True
    raise InvalidInputError(
        f'response_format must be {{"type": "json_object"}} or {{"type": "json_schema", ...}}; got {response_format!r}'
    )


def _as_schema(schema: Any, where: str) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise InvalidInputError(f"response_format needs a JSON schema, an object, at {where}; got {schema!r}")
    return schema
