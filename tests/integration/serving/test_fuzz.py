"""Whatever JSON arrives, the service answers in its layout and never fails."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.service import Running

EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
anything: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def resolve(schema: dict[str, Any], node: Any) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rsplit("/", 1)[1]]
    return node


def values_of(schema: dict[str, Any], node: Any) -> Any:
    """Values of a schema's node, and now and then anything else."""
    node = resolve(schema, node)
    options = [values_of(schema, one) for one in node.get("anyOf", [])]
    if "enum" in node:
        options.append(st.sampled_from(node["enum"]))
    kind = node.get("type")
    if kind == "string" and "enum" not in node:
        options.append(
            st.text(st.characters(codec=None), max_size=30) | st.just("The bridge was opened in 1932. It is red.")
        )
    elif kind == "integer":
        options.append(st.integers(node.get("minimum", -9), min(node.get("maximum", 99), 1 << 31)))
    elif kind == "number":
        options.append(st.floats(node.get("minimum", 0), node.get("maximum", 1)) | st.floats())
    elif kind == "boolean":
        options.append(st.booleans())
    elif kind == "array":
        options.append(st.lists(values_of(schema, node["items"]), max_size=4))
    elif kind == "object" and "properties" in node:
        options.append(objects_of(schema, node))
    return st.one_of(*options, anything) if options else anything


def objects_of(schema: dict[str, Any], node: Any) -> Any:
    values = {name: values_of(schema, inner) for name, inner in node["properties"].items()}
    required = {name: values.pop(name) for name in node.get("required", []) if name in values}
    return st.fixed_dictionaries(required, optional=values)


@pytest.fixture(scope="module")
def schema(service: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(service.url + "/openapi.json").json()
    return found


PATHS = ["/v1/compress", "/v1/rerank", "/rerank", "/v1/ingest", "/v1/count_tokens"]


@pytest.mark.parametrize("path", PATHS)
def test_bodies_of_the_schema(path: str, schema: dict[str, Any], service: Running) -> None:
    operation = schema["paths"][path]["post"]
    node = resolve(schema, operation["requestBody"]["content"]["application/json"]["schema"])
    declared = {int(status) for status in operation["responses"]}
    seen = set()
    with httpx.Client(base_url=service.url) as client:

        @EXAMPLES
        @given(objects_of(schema, node) | anything)
        def check(body: Any) -> None:
            answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            seen.add(answer.status_code)
            assert answer.status_code < 500, (body, answer.text)
            assert answer.status_code in declared
            assert answer.is_success or answer.json()["error"]["code"] == str(answer.status_code)

        check()
    assert 422 in seen


@pytest.mark.parametrize("path", PATHS[:2])
def test_bytes(path: str, service: Running) -> None:
    with httpx.Client(base_url=service.url) as client:

        @EXAMPLES
        @given(st.binary(max_size=60))
        def check(body: bytes) -> None:
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), answer.text

        check()


def test_every_answer_is_declared(schema: dict[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path.startswith("/v") or path == "/rerank":
                assert {"200", "400", "401", "408", "413", "422", "429", "500", "503"} <= operation["responses"].keys()
                errors = [one for status, one in operation["responses"].items() if status != "200"]
                names = {one["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1] for one in errors}
                assert names == {"ErrorAnswer"}
    assert schema["paths"]["/healthz"]["get"]["security"] == []
