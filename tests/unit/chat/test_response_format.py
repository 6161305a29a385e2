from typing import Any

import pytest

from draftapprox_integrations.chat.response_format import wanted_schema
from draftapprox_integrations.errors import InvalidInputError

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given", "schema", "shown"),
    [
        (None, None, False),
        ({"type": "text"}, None, False),
        ({"type": "json_object"}, {"type": "object"}, False),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA, False),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}, SCHEMA, True),
    ],
)
def test_the_schema_and_whether_the_model_sees_it(given: Any, schema: Any, shown: bool) -> None:
    assert wanted_schema(given) == (schema, shown)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("json", "response_format must be"),
        ({}, "response_format must be"),
        ({"type": ["text"]}, "response_format must be"),
        ({"type": "json_object", "schema": 3}, "needs a JSON schema"),
        ({"type": "json_schema"}, "needs a JSON schema"),
        ({"type": "json_schema", "json_schema": SCHEMA}, "needs a JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": [SCHEMA]}}, "needs a JSON schema"),
    ],
)
def test_what_is_no_format(given: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        wanted_schema(given)
