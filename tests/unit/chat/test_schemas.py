"""JSON schemas prepared for constrained decoding: schemas are changed, data and names are not."""

from typing import Any

import pytest

from draftapprox_integrations.chat.schemas import allow_repeated_items, answer_or_call_schema, close_objects

OPEN = {"type": "object", "properties": {"x": {"type": "integer"}}}
CLOSED = OPEN | {"additionalProperties": False}


def test_objects_take_no_other_keys_unless_told_so() -> None:
    assert close_objects(OPEN) == CLOSED
    assert close_objects({"properties": {}, "type": ["object", "null"]})["additionalProperties"] is False
    assert close_objects({"type": "object"}) == {"type": "object"}
    assert close_objects({"properties": {}, "additionalProperties": True})["additionalProperties"] is True
    assert close_objects({"type": "array", "properties": {}}) == {"type": "array", "properties": {}}


@pytest.mark.parametrize("keyword", ["items", "not", "if", "then", "else", "contains", "additionalProperties"])
def test_schemas_inside_are_closed(keyword: str) -> None:
    assert close_objects({keyword: OPEN}) == {keyword: CLOSED}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf", "prefixItems"])
def test_schemas_in_lists_are_closed(keyword: str) -> None:
    assert close_objects({keyword: [OPEN, True]}) == {keyword: [CLOSED, True]}


@pytest.mark.parametrize("keyword", ["properties", "$defs", "definitions", "patternProperties"])
@pytest.mark.parametrize("name", ["a", "enum", "properties", "default", "$ref", "uniqueItems", "items"])
def test_named_schemas_are_closed_whatever_their_name(keyword: str, name: str) -> None:
    assert close_objects({"type": "array", keyword: {name: OPEN}}) == {"type": "array", keyword: {name: CLOSED}}


@pytest.mark.parametrize(
    "data", [OPEN, [OPEN], [{"items": OPEN}], {"$ref": "#/$defs/a"}, {"uniqueItems": True}, "#/$defs/"]
)
@pytest.mark.parametrize("keyword", ["enum", "const", "default", "examples", "example", "x-note", "title"])
def test_data_is_never_rewritten(keyword: str, data: Any) -> None:
    schema = {"type": "array", keyword: data}
    assert close_objects(schema) == schema
    assert allow_repeated_items(schema) == schema
    assert answer_or_call_schema(schema, [{"name": "t"}])["$defs"]["answer"] == schema
    nested = {"items": {"properties": {"enum": schema}}}
    assert close_objects(nested)["items"]["properties"]["enum"] == schema


def test_the_given_schema_is_left_alone() -> None:
    schema: Any = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"properties": {}, "uniqueItems": True}}}
    answer_or_call_schema(close_objects(allow_repeated_items(schema)), [{"name": "t"}])
    assert schema["$defs"] == {"a": {"properties": {}, "uniqueItems": True}}
