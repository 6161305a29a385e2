"""The proxy between real clients and a real OpenAI-compatible server with the embedded model."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from langchain_classic.chains.question_answering import refine_prompts, stuff_prompt
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from llama_index.core import Document, SummaryIndex
from llama_index.core.prompts import chat_prompts, default_prompts
from llama_index.core.query_engine import citation_query_engine
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.langchain import SpecPCMiddleware
from draftapprox_integrations.serving.errors import add_error_handlers
from draftapprox_integrations.serving.proxy import proxy_router
from draftapprox_integrations.serving.proxy_settings import ProxySettings
from draftapprox_integrations.serving.shortening import shorten
from tests.helpers.upstream import Recorder, running, transformers_server

MILL = "The old mill was built in 1821. Today it is a small museum. It closes in winter."
BRIDGE = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning."
CONTEXT = f"{MILL * 3}\n\n{BRIDGE}\n\n{MILL * 3}"
QUESTION = "In which year was the bridge opened?"
PROMPT = f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"
SETTINGS = ProxySettings(max_tokens=24, trigger_tokens=48, time_limit=60)


def application(compressor: Any, upstream: Any, settings: Any = SETTINGS) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(proxy_router(compressor, upstream, settings))
    return app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, endless: LoadedModel) -> str:
    """The folder of a model that writes until its limit."""
    folder = str(tmp_path_factory.mktemp("served"))
    endless.model.save_pretrained(folder)
    endless.require_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def upstream(model: Any) -> Iterator[Any]:
    recorder = Recorder(transformers_server(model))
    with running(recorder) as url:
        yield recorder, f"{url}/v1"


@pytest.fixture(scope="module")
def proxy(upstream: Any, smol: SpecPC) -> Iterator[str]:
    with running(application(smol, upstream[1])) as url:
        yield f"{url}/v1"


@pytest.fixture
def arrived(upstream: Any) -> Any:
    upstream[0].requests.clear()
    return upstream[0].requests


def answer(url: Any, model: Any, content: Any, **options: Any) -> Any:
    with openai.OpenAI(base_url=url, api_key="a-key", max_retries=0) as client:
        options = {"max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": content}]} | options
        return client.chat.completions.with_raw_response.create(model=model, **options)


def stream(url: Any, model: Any, content: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    with openai.OpenAI(base_url=url, api_key="a-key", max_retries=0) as client:
        return list(client.chat.completions.create(model=model, messages=messages, max_tokens=6, stream=True))


def test_a_long_context_arrives_shortened(proxy: Any, model: Any, arrived: Any, smol: SpecPC) -> None:
    response = answer(proxy, model, PROMPT)
    (request,) = arrived
    content = request.json["messages"][0]["content"]
    assert content.startswith("Context:\n")
    assert content.endswith(f"\n\nQuestion: {QUESTION}")
    assert "opened in 1932" in content
    assert "winter" not in content
    before, after = (int(response.headers[f"x-draftapprox-tokens-{name}"]) for name in ("before", "after"))
    assert after <= 24 < before
    assert response.headers["x-draftapprox-status"] == "shortened"
    assert float(response.headers["x-draftapprox-seconds"]) >= 0
    assert response.headers["x-request-id"]  # the upstream's own headers come through
    assert request.header("authorization") == "Bearer a-key"
    assert not any(name.startswith("x-draftapprox") for name, _ in request.headers)
    body = {"messages": [{"role": "user", "content": PROMPT}]}
    in_process = shorten(smol, json.dumps(body).encode(), "chat", max_tokens=24)
    assert json.loads(in_process.body)["messages"][0]["content"] == content
    assert response.parse().usage.prompt_tokens < before  # what the user pays for


def test_without_long_context_nothing_differs(proxy: Any, upstream: Any, model: Any, arrived: Any) -> None:
    content = f"Context: {BRIDGE}\n\nQuestion: {QUESTION}"
    direct, through = (answer(url, model, content) for url in (upstream[1], proxy))
    assert through.headers["x-draftapprox-status"] == "untouched"
    assert through.parse().choices == direct.parse().choices
    assert arrived[0].body == arrived[1].body
    same = [dict(request.headers) for request in arrived]
    for name in ("host", "connection"):
        for headers in same:
            headers.pop(name, None)
    assert same[0] == same[1]
    streams = [[chunk.choices for chunk in stream(url, model, content)] for url in (upstream[1], proxy)]
    assert streams[0] == streams[1]
    assert len(streams[0]) > 4


def test_the_headers_of_a_request_decide(proxy: Any, model: Any, arrived: Any) -> None:
    off = answer(proxy, model, PROMPT, extra_headers={"X-DraftApprox": "off"}, max_tokens=1)
    assert (off.headers["x-draftapprox-status"], arrived[-1].json["messages"][0]["content"]) == ("off", PROMPT)
    tight = answer(proxy, model, PROMPT, extra_headers={"X-DraftApprox-Max-Tokens": "10"}, max_tokens=1)
    assert int(tight.headers["x-draftapprox-tokens-after"]) <= 10
    wide = answer(proxy, model, PROMPT, extra_headers={"X-DraftApprox-Max-Tokens": "9999"}, max_tokens=1)
    assert (wide.headers["x-draftapprox-status"], arrived[-1].json["messages"][0]["content"]) == ("untouched", PROMPT)
    for name, value in (("X-DraftApprox", "no"), ("X-DraftApprox-Max-Tokens", "many")):
        with pytest.raises(openai.BadRequestError, match=name):
            answer(proxy, model, PROMPT, extra_headers={name: value})
    assert len(arrived) == 3


def test_dropped_text_can_be_asked_for(proxy: Any, model: Any) -> None:
    key = answer(proxy, model, PROMPT, max_tokens=1).headers["x-draftapprox-dropped"]
    found = httpx.get(f"{proxy}/dropped/{key}").json()
    assert "The old mill was built in 1821." in found["text"]
    assert "opened in 1932" not in found["text"]
    assert found["id"] == key
    missing = httpx.get(f"{proxy}/dropped/dropped-x")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "404")


def test_marker_and_report_if_asked_for(upstream: Any, smol: SpecPC, model: Any, arrived: Any) -> None:
    settings = ProxySettings(max_tokens=24, trigger_tokens=0, time_limit=60, marker=True, report_in_body=True)
    with running(application(smol, upstream[1], settings)) as url:
        response = answer(f"{url}/v1", model, PROMPT, max_tokens=1)
        report = json.loads(response.content)["draftapprox"]
        assert report["status"] == "shortened"
        assert report["tokens_after"] <= 24 < report["tokens_before"]
        content = arrived[0].json["messages"][0]["content"]
        assert f"id {report['dropped'][0]}]\n\nQuestion: {QUESTION}" in content
        assert response.parse().usage.completion_tokens == 1
        chunks = stream(f"{url}/v1", model, PROMPT)
        assert chunks
        assert not any("draftapprox" in chunk.model_dump() for chunk in chunks)


def test_completions(proxy: Any, upstream: Any, model: Any, arrived: Any) -> None:
    with openai.OpenAI(base_url=proxy, api_key="k") as client:
        client.completions.create(model=model, prompt=f"{PROMPT}\nAnswer:", max_tokens=4, temperature=0)
    prompt = arrived[0].json["prompt"]
    assert prompt.endswith(f"Question: {QUESTION}\nAnswer:")
    assert "1932" in prompt
    assert "winter" not in prompt


async def test_chat_openai(proxy: Any, model: Any, arrived: Any) -> None:
    chat = ChatOpenAI(model=model, base_url=proxy, api_key="k", max_completion_tokens=4, temperature=0)
    written = chat.invoke(stuff_prompt.PROMPT.format(context=CONTEXT, question=QUESTION))
    assert written.text
    streamed = "".join([piece.text async for piece in chat.astream([HumanMessage(PROMPT)])])
    assert streamed
    for request in arrived:
        assert "opened in 1932" in request.json["messages"][0]["content"]
        assert "winter" not in request.json["messages"][0]["content"]


def test_openai_like_with_a_query_engine(proxy: Any, model: Any, arrived: Any) -> None:
    llm = OpenAILike(model=model, api_base=proxy, api_key="k", is_chat_model=True, max_tokens=4, temperature=0)
    index = SummaryIndex.from_documents([Document(text=text) for text in (MILL * 3, BRIDGE, MILL * 3)])
    assert str(index.as_query_engine(llm=llm).query(QUESTION))
    assert "".join(index.as_query_engine(llm=llm, streaming=True).query(QUESTION).response_gen)
    assert len(arrived) == 2
    for request in arrived:
        system, user = request.json["messages"]
        assert system["content"].startswith("You are an expert Q&A system")
        assert "opened in 1932" in user["content"]
        assert "winter" not in user["content"]
        assert user["content"].endswith(f"Query: {QUESTION}\nAnswer: ")


PROMPTS = {
    "LlamaIndex QA": default_prompts.DEFAULT_TEXT_QA_PROMPT_TMPL,
    "LlamaIndex tree": default_prompts.DEFAULT_TREE_SUMMARIZE_TMPL,
    "LlamaIndex refine": default_prompts.DEFAULT_REFINE_PROMPT_TMPL,
    "LlamaIndex chat QA": chat_prompts.CHAT_TEXT_QA_PROMPT.message_templates[-1].content,
    "LlamaIndex chat refine": chat_prompts.CHAT_REFINE_PROMPT.message_templates[-1].content,
    "LlamaIndex citations": citation_query_engine.CITATION_QA_TEMPLATE.template,
    "LlamaIndex refined citations": citation_query_engine.CITATION_REFINE_TEMPLATE.template,
    "LangChain stuff": stuff_prompt.PROMPT.template,
    "LangChain refine": refine_prompts.DEFAULT_REFINE_PROMPT.template,
    "LangChain refine, first": refine_prompts.DEFAULT_TEXT_QA_PROMPT.template,
}


@pytest.mark.parametrize("name", PROMPTS)
def test_default_prompts_of_the_frameworks(name: Any, smol: SpecPC) -> None:
    names = dict.fromkeys(("context_str", "context_msg", "context"), "\0")
    names |= dict.fromkeys(("query_str", "question"), QUESTION) | {"existing_answer": "In 1931."}
    template = PROMPTS[name].format(**names)
    before, after = template.split("\0")
    body = {"messages": [{"role": "user", "content": before + CONTEXT + after}]}
    shortened = shorten(smol, json.dumps(body).encode(), "chat", max_tokens=24)
    content = json.loads(shortened.body)["messages"][0]["content"]
    assert content.startswith(before)
    assert content.endswith(after)
    kept = content[len(before) : len(content) - len(after)]
    assert "opened in 1932" in kept
    assert smol.count_tokens([kept])[0] <= 24 + 2  # blank lines between paragraphs are not counted


def test_tool_results_are_shortened_as_the_middleware_does(proxy: Any, model: Any, smol: SpecPC) -> None:
    call = {"name": "search", "args": {"q": "bridge"}, "id": "c1", "type": "tool_call"}
    messages = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage(CONTEXT, tool_call_id="c1")]
    (*_, expected) = SpecPCMiddleware(smol, max_tokens=24).compress(messages)
    body = {"messages": [{"role": "user", "content": QUESTION}, {"role": "tool", "content": CONTEXT}]}
    shortened = json.loads(shorten(smol, json.dumps(body).encode(), "chat", max_tokens=24).body)
    assert shortened["messages"][1]["content"] == expected.content != CONTEXT
