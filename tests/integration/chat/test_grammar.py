"""JSON of a given schema, written by a model that knows nothing (tiny) and by the embedded one."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field, SecretStr
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, load_model
from draftapprox_integrations.chat.grammar import JsonConstraint
from draftapprox_integrations.chat.schemas import allow_repeated_items, answer_or_call_schema, call_schema
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import tiny_llama

CITY = {
    "type": "object",
    "properties": {"name": {"enum": ["Oslo", "Rome"]}, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "people"],
}
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
FULL = SpecKVConfig(max_capacity_prompt=4000, lookahead_tokens=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_knows_nothing_writes_json_of_the_schema(tiny: LoadedModel, seed: Any) -> None:
    (found,) = SpecKV(tiny, None, FULL).generate(
        "A city:", max_new_tokens=80, temperature=1.5, seed=seed, logits_processor=[JsonConstraint(tiny, CITY)]
    )
    city = json.loads(found.text)
    assert city.keys() == {"name", "people"}
    assert city["name"] in ("Oslo", "Rome")
    assert 0 <= city["people"] <= 99
    assert found.finish_reason == "stop"


def test_also_where_pairs_are_dropped_and_where_the_model_has_more_ids_than_its_tokenizer(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    target = load_model((tiny_llama(vocab_size=600), tiny_tokenizer))
    tight = SpecKV(target, "self", SpecKVConfig(max_capacity_prompt=16, window_size=8, lookahead_tokens=4))
    (found,) = tight.generate(
        "A city of the north. " * 10, max_new_tokens=80, logits_processor=[JsonConstraint(target, CITY)]
    )
    assert json.loads(found.text).keys() == {"name", "people"}
    assert found.usage.kept_kv == 16


def test_calls_of_one_tool_or_of_any(embedded_model: LoadedModel) -> None:
    move = {
        "name": "move",
        "parameters": {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/Point"}},
            "required": ["to"],
            "$defs": {"Point": POINT},
        },
    }
    tools = [{"type": "function", "function": move}, {"type": "function", "function": {"name": "stop"}}]
    engine = SpecKV(embedded_model, None, FULL)
    for name in ("move", "stop"):
        only = JsonConstraint(embedded_model, call_schema(tools, name))
        (found,) = engine.generate("Call a function:", max_new_tokens=60, logits_processor=[only])
        call = json.loads(found.text)
        assert call["name"] == name
        assert isinstance(call["arguments"]["to"]["x"], int) if name == "move" else call["arguments"] == {}
    either = JsonConstraint(embedded_model, call_schema(tools))
    (found,) = engine.generate("Call a function:", max_new_tokens=60, logits_processor=[either])
    assert json.loads(found.text)["name"] in ("move", "stop")
    with pytest.raises(InvalidInputError, match="names 'jump'; there are: move, stop"):
        call_schema(tools, "jump")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_of_a_schema_or_a_call(tiny: LoadedModel, seed: Any) -> None:
    move = {"name": "move", "parameters": {"$ref": "#/$defs/Point", "$defs": {"Point": POINT}}}
    city = {"$ref": "#/$defs/City", "$defs": {"City": CITY}}
    schema = answer_or_call_schema(city, [{"type": "function", "function": move}])
    (found,) = SpecKV(tiny, None, FULL).generate(
        "A city:", max_new_tokens=80, temperature=1.5, seed=seed, logits_processor=[JsonConstraint(tiny, schema)]
    )
    written = json.loads(found.text)
    assert written.keys() in ({"name", "people"}, {"name", "arguments"})
    if "arguments" in written:
        assert written["name"] == "move"
        assert isinstance(written["arguments"]["x"], int)


LOOKS_LIKE_A_SCHEMA = {"properties": {"a": 1}, "$ref": "#/$defs/Point", "uniqueItems": True, "format": "binary"}


def test_data_that_looks_like_a_schema_is_written_as_it_is(tiny: LoadedModel) -> None:
    value = {"type": "object", "properties": {"v": {"enum": [LOOKS_LIKE_A_SCHEMA]}}, "required": ["v"]}
    tool = {"type": "function", "function": {"name": "move", "parameters": value}}
    for schema in (value, call_schema([tool])):
        (found,) = SpecKV(tiny, None, FULL).generate(
            "A value:", max_new_tokens=200, logits_processor=[JsonConstraint(tiny, schema)]
        )
        written = json.loads(found.text)
        assert written.get("arguments", written) == {"v": LOOKS_LIKE_A_SCHEMA}


def test_a_schema_that_refers_to_itself(tiny: LoadedModel) -> None:
    tree = {"type": "object", "properties": {"child": {"anyOf": [{"$ref": "#"}, {"const": 7}]}}, "required": ["child"]}
    schema = call_schema([{"name": "grow", "parameters": tree}])
    (found,) = SpecKV(tiny, None, FULL).generate(
        "A tree:", max_new_tokens=200, temperature=1.5, seed=2, logits_processor=[JsonConstraint(tiny, schema)]
    )
    node = json.loads(found.text)["arguments"]
    while node != 7:
        assert node.keys() == {"child"}
        node = node["child"]


class Held(BaseModel):
    """Types whose JSON schema has what a grammar cannot enforce."""

    numbers: set[Literal[1, 2]] = Field(max_length=2)
    names: frozenset[Literal["a"]]
    data: bytes = Field(json_schema_extra={"maxLength": 3})
    secret: Annotated[SecretStr, Field(max_length=3)]
    folder: Literal["a"] | Annotated[Path, Field(json_schema_extra={"maxLength": 3})]


@pytest.mark.parametrize("seed", range(3))
def test_pydantic_types_that_are_validated_afterwards(tiny: LoadedModel, seed: int) -> None:
    schema = Held.model_json_schema()
    with pytest.raises(InvalidInputError, match="uniqueItems"):
        JsonConstraint(tiny, schema)
    for form in (allow_repeated_items(schema), call_schema([{"name": "hold", "parameters": schema}])):
        (found,) = SpecKV(tiny, None, FULL).generate(
            "Held:", max_new_tokens=400, temperature=1.5, seed=seed, logits_processor=[JsonConstraint(tiny, form)]
        )
        written = json.loads(found.text)
        held = Held.model_validate(written.get("arguments", written))
        assert held.numbers <= {1, 2}


def test_a_schema_that_cannot_be_enforced(tiny: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="cannot be enforced"):
        JsonConstraint(tiny, {"type": "no such type"})


def test_values_that_no_schema_should_have(tiny: LoadedModel) -> None:
    JsonConstraint(tiny, {"properties": {"a": {"format": ["date"], "type": "string"}}})
    JsonConstraint(tiny, {"type": "integer", "maximum": 2**70, "default": 2**70})


def test_the_mask_lets_through_only_what_may_begin_the_json(tiny: LoadedModel) -> None:
    only = JsonConstraint(tiny, CITY)
    scores = only(torch.tensor([[1, 2, 3]]), torch.zeros(1, 512))
    allowed = [tiny.tokenizer.decode([i]) for i in torch.isfinite(scores[0]).nonzero().flatten().tolist()]
    assert allowed
    assert all(text.startswith("{") for text in allowed)
