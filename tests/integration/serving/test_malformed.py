"""Whatever a body holds, the answer is an answer, or an error in OpenAI's layout that says what to do. Never a 500."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftapprox_integrations import LoadedModel, SpecKV
from tests.helpers.openai_service import NAME, serving_completions
from tests.helpers.serving import LONG, TIGHT

CHAT = "/chat/completions"
TEXT = "/completions"
HELLO = [{"role": "user", "content": "Hi"}]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def http(tiny: LoadedModel) -> Iterator[httpx.Client]:
    kv = SpecKV(tiny, "self", TIGHT)
    with serving_completions(kv, default_tokens=2, max_answers=4) as url, httpx.Client(base_url=url) as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"message", "error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["message"] == body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"
    error: dict[str, Any] = body["error"]
    return error


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def called(function: Any) -> list[dict[str, Any]]:
    return [
        *HELLO,
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        *HELLO,
    ]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": None}, "messages", "valid list"),
        ({"messages": []}, "messages", "give at least one"),
        ({"messages": ["Hi"]}, "messages[0]", "valid dictionary"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "must be one of system, developer, user"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role", "must be one of"),
        ({"messages": [*HELLO, {"role": "human", "content": "Hi"}]}, "messages[1].role", "got 'human'"),
        ({"messages": user(None)}, "messages[0].content", "a text or a list of text parts"),
        ({"messages": user(3)}, "messages[0].content", "a text or a list of text parts"),
        ({"messages": user([3])}, "messages[0].content[0]", "text only"),
        ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text", "must be a text"),
        ({"messages": user([{"type": "image_url", "image_url": {}}])}, "messages[0].content[0]", "'image_url'"),
        ({"messages": user([{"type": "input_audio"}])}, "messages[0].content[0]", "'input_audio'"),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls", "assistant"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call", "use tool_calls"),
        ({"messages": [{"role": "user", "content": "Hi", "name": 3}]}, "messages[0].name", "must be a text"),
        ({"messages": called({"arguments": "{}"})}, "messages[1].tool_calls[0].function.name", "not empty"),
        ({"messages": called({"name": "f", "arguments": "{"})}, "messages[1].tool_calls[0].function.arguments", "JSON"),
        ({"messages": called({"name": "f", "arguments": 3})}, "messages[1].tool_calls[0].function.arguments", "JSON"),
        ({"messages": called(None)}, "messages[1].tool_calls[0]", "'function'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "an object with a name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "not empty"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "rename one"),
        ({"tool_choice": "required"}, "tool_choice", "give tools"),
        ({"tools": [TOOL], "tool_choice": 3}, "tool_choice", "auto"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, None, "tool_choice must be"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, None, "there are: search"),
        ({"response_format": {"type": "xml"}}, None, "response_format must be"),
        ({"response_format": {"type": "json_object", "schema": {"enum": [2**70], "type": []}}}, None, "enforced"),
        ({"response_format": {"type": "json_schema"}}, None, "needs a JSON schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}}}, None, "enforced"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**30}, "max_tokens", "at most 32768"),
        ({"max_completion_tokens": 40_000}, "max_completion_tokens", "at most 32768"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 5}, "n", "at most 4 answers"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": [""]}, "stop[0]", "at least 1 character"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less than or equal to 2"),
        ({"logit_bias": {"512": 1}}, "logit_bias", "0 to 511"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "0 to 511"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({"logprobs": True}, "logprobs", "leave it out"),
        ({"top_logprobs": 2}, "top_logprobs", "leave it out"),
        ({"functions": [{}]}, "functions", "use tools"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "chat_template_kwargs"),
        ({"tempreature": 1}, "tempreature", "There are: .*temperature"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "variables of the template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "variables of the template"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_at_fault(http: httpx.Client, fields: Any, param: Any, says: str, stream: bool) -> None:
    answer = http.post(CHAT, json={"model": NAME, "messages": HELLO, "stream": stream} | fields)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(error["message"])


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": []}, "prompt", "must be a text"),
        ({"prompt": ["a", 1]}, "prompt", "must be a text"),
        ({"prompt": [[1], []]}, "prompt", "must be a text"),
        ({"prompt": [True]}, "prompt", "must be a text"),
        ({"prompt": {"a": 1}}, "prompt", "must be a text"),
        ({"prompt": [511, 512]}, None, "[0, 512)"),
        ({"prompt": [-1]}, None, "[0, 512)"),
        ({"prompt": [10**30]}, None, "[0, 512)"),
        ({"prompt": ["a", ""]}, None, "the prompt is empty"),
        ({"prompt": ["a", "b", "c"], "n": 2}, "n", "at most 4 answers"),
        ({"echo": True}, "echo", "yourself"),
        ({"logprobs": 0}, "logprobs", "leave it out"),
        ({"suffix": "end"}, "suffix", "leave it out"),
        ({"best_of": 2}, "best_of", "use n"),
        ({"tools": [TOOL]}, "tools", "no such field"),
        ({"messages": HELLO}, "messages", "no such field"),
    ],
)
def test_a_field_of_a_completion_at_fault(http: httpx.Client, fields: Any, param: Any, says: str) -> None:
    answer = http.post(TEXT, json={"model": NAME, "prompt": "Hi"} | fields)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"model": "\\ud800"}',
     b'{"a":' * 300 + b"1" + b"}" * 300],
)  # fmt: skip
def test_a_body_that_is_no_json_object(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_model_that_is_not_here(http: httpx.Client, path: str) -> None:
    for model in ("gpt-4o", NAME.upper(), "x" * 100_000):
        answer = http.post(
            path, json={"model": model, "messages": HELLO} if path == CHAT else {"model": model, "prompt": "Hi"}
        )
        assert answer.status_code == 404
        error = error_of(answer)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert repr(NAME) in error["message"]
        assert len(error["message"]) < 400
    answer = http.post(path, json={"messages": HELLO} if path == CHAT else {"prompt": "Hi"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "model")
    assert http.get(path).status_code == 405
    assert http.post(f"{path}/more", json={}).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(http: httpx.Client, stream: bool) -> None:
    for path, body in ((CHAT, {"messages": user(LONG * 100)}), (TEXT, {"prompt": [3] * 4096}),
                       (TEXT, {"prompt": "Hi", "max_tokens": 4096})):  # fmt: skip
        answer = http.post(path, json={"model": NAME, "stream": stream} | body)
        assert answer.status_code == 400
        error = error_of(answer)
        assert error["code"] == "context_length_exceeded"
        assert "reads at most 4096" in error["message"]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_texts_of_all_kinds(http: httpx.Client, role: str) -> None:
    for text in ("", " ", "\0", "\u202e🌉👩‍👩‍👧", "日本語\r\n", "{{ 7 * 7 }}{% raw %}", "\U00012000" * 70):
        message = {"role": role, "content": [{"type": "text", "text": text}], "name": text, "unknown": [text]}
        answers = [
            http.post(CHAT, json={"model": NAME, "messages": [*HELLO, message, *HELLO], "max_tokens": 3, "user": text})
            for message in (message, message | {"content": text})
        ]
        assert answers[0].status_code == 200, answers[0].text
        assert answers[0].json()["choices"] == answers[1].json()["choices"]


# ---------------------------------------------------------------- at random

_WEIRD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8, alphabet=st.characters(exclude_categories=("Cs",)))
    | st.sampled_from(["auto", "required", "text", "function", "search", "object", "string", "<|end|>", "$ref"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "function", "name", "content", "text", "parameters", "properties", "schema", "format",
                         "json_schema", "items", "$ref", "anyOf", "enum", "role", "required", "pattern", "x"]),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
_SCHEMA = st.fixed_dictionaries({"type": st.just("object") | _WEIRD, "properties": st.dictionaries(
    st.sampled_from(["a", "b"]), _WEIRD, max_size=2)})  # fmt: skip
_TOOLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "<|end|>"]), "parameters": _SCHEMA})}), min_size=1, max_size=2)  # fmt: skip
_FORMAT = st.builds(lambda schema: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, _SCHEMA)
_CALLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "id": _WEIRD, "function": st.fixed_dictionaries(
    {"name": st.text(max_size=3), "arguments": st.builds(json.dumps, _WEIRD)})}), max_size=2)  # fmt: skip
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={"content": st.text(max_size=5) | _WEIRD, "tool_calls": _CALLS | _WEIRD, "tool_call_id": _WEIRD},
    ),
    min_size=1, max_size=4,
)  # fmt: skip
_FIELDS = ["temperature", "top_p", "top_k", "n", "stop", "seed", "frequency_penalty", "logit_bias", "stream",
           "stream_options", "user", "logprobs", "messages", "prompt", "tools", "model", "x"]  # fmt: skip
_CHATS = st.fixed_dictionaries(
    {"messages": st.just(HELLO) | _MESSAGES},
    optional={
        "tools": _TOOLS, "tool_choice": st.sampled_from(["required", "none", "auto", "f"]), "response_format": _FORMAT,
        "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "seed": st.integers(), "stream": st.booleans(),
        "chat_template_kwargs": st.dictionaries(st.text(max_size=3), _WEIRD, max_size=1),
        "presence_penalty": st.floats(-2, 2), "stop": st.lists(st.text(max_size=2), max_size=3),
    },
)  # fmt: skip
_FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(_FUZZ, max_examples=80)
@given(body=_CHATS)
def test_random_chats(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http.post(CHAT, content=json.dumps({"model": NAME, "max_tokens": 2} | body)))


@settings(_FUZZ, max_examples=80)
@given(body=st.dictionaries(st.sampled_from(_FIELDS), _WEIRD))
def test_random_fields(http: httpx.Client, body: dict[str, Any]) -> None:
    given = {"model": NAME, "max_tokens": 2}
    check(http.post(CHAT, content=json.dumps(given | {"messages": HELLO} | body)))
    check(http.post(TEXT, content=json.dumps(given | {"prompt": "Hi"} | body)))


def check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        assert '"error"' not in answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.json()["choices"]
    else:
        assert answer.status_code in (400, 404), answer.text
        assert len(error_of(answer)["message"]) > 10
