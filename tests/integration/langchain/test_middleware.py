"""SpecPCMiddleware in real agents of LangChain."""

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import ChatSpecKV, SpecPCMiddleware

MILL = "The old mill was built in 1821. Today it is a small museum. It closes in winter. "
BRIDGE = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning. "
FOUND = MILL + BRIDGE + "Visitors like the quiet path along the river, where herons stand in the shallows. "
QUESTION = "In which year was the bridge opened?"


def conversation(content: Any = FOUND, question: Any = QUESTION, **fields: Any) -> Any:
    call = {"name": "search", "args": {"query": "bridge"}, "id": "call-1", "type": "tool_call"}
    return [
        SystemMessage("Be brief."),
        HumanMessage(question),
        AIMessage("", tool_calls=[call]),
        ToolMessage(content, tool_call_id="call-1", name="search", id="m-3", **fields),
    ]


@pytest.fixture
def middleware(smol: SpecPC) -> Any:
    return SpecPCMiddleware(smol, max_tokens=16)


@pytest.fixture
def reads(smol: SpecPC, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tokens that the draft read, per compression in which it ran."""
    counted = []

    def compress(*args: Any, **options: Any) -> Any:
        result = SpecPC.compress(smol, *args, **options)
        counted.extend([result.draft_tokens] if result.draft_tokens else [])
        return result

    monkeypatch.setattr(smol, "compress", compress)
    return counted


def test_a_tool_result_is_read_with_the_question(middleware: Any, smol: SpecPC) -> None:
    before = conversation(artifact=[Document("x")], additional_kwargs={"kept": 1})
    copies = [message.model_copy(deep=True) for message in before]
    after = middleware.compress(before)
    assert before == copies  # nothing that was given has changed
    assert after[:3] == before[:3]
    assert "opened in 1932" in after[3].content
    assert smol.count_tokens([after[3].content])[0] <= 16
    ((start, end), *_) = after[3].response_metadata["specpc"][0]["kept"]
    assert FOUND[start:end] in after[3].content
    for name in ("tool_call_id", "name", "id", "artifact", "additional_kwargs", "status"):
        assert getattr(after[3], name) == getattr(before[3], name)


@pytest.mark.parametrize(
    "messages",
    [
        conversation("It was 1932."),  # fits
        conversation(json.dumps([{"text": FOUND}])),  # pieces of JSON are not JSON
        conversation(FOUND, status="error"),
        conversation("   "),
        conversation([]),
        conversation([{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]),
        [AIMessage(FOUND), SystemMessage(FOUND), HumanMessage(FOUND)],
        conversation()[2:],  # no question to choose by
        [],
    ],
    ids=["fits", "json", "error", "blank", "no blocks", "image", "no tool", "no question", "empty"],
)
def test_left_as_it_is(middleware: Any, messages: Any, reads: Any) -> None:
    assert middleware.compress(messages) == messages
    assert not reads


def test_content_blocks_keep_their_kind_and_order(middleware: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
    blocks = [{"type": "text", "text": MILL, "cache_control": "x"}, image, BRIDGE]
    (*_, result) = middleware.compress(conversation(blocks))
    assert image in result.content
    assert any("1932" in block for block in result.content if isinstance(block, str))
    for block in result.content:
        if isinstance(block, dict) and block["type"] == "text":
            assert block["cache_control"] == "x"
    assert len(result.response_metadata["specpc"]) == 2


def test_read_once_per_result_and_question(smol: SpecPC, reads: Any) -> None:
    middleware = SpecPCMiddleware(smol, max_tokens=24)
    first = middleware.compress(conversation())
    assert len(reads) == 1
    assert middleware.compress(conversation()) == first
    assert middleware.compress([*conversation(), AIMessage("In 1932.")])[:4] == first
    assert len(reads) == 1
    later = [*conversation(), AIMessage("In 1932."), HumanMessage("When was the mill built?")]
    (*_, result, _, _) = middleware.compress(later)
    assert len(reads) == 2  # the new question is asked of the old result too
    assert "1821" in result.content
    middleware.compress(conversation())
    middleware.compress(later)
    assert len(reads) == 2  # both are remembered
    small = SpecPCMiddleware(middleware.load(), max_tokens=16, cache_size=1)
    for question in (QUESTION, "When was the mill built?", QUESTION):
        small.compress(conversation(question=question))
    assert len(reads) == 5  # only one is remembered


def test_copies_share_the_models_and_not_the_cache(middleware: Any) -> None:
    given = conversation()
    expected = middleware.compress(given)
    for copied in (copy.deepcopy(middleware), copy.copy(middleware)):
        assert copied.load() is middleware.load()
        assert copied.compress(given) == expected
        assert copied._cache is not middleware._cache
    assert pickle.loads(pickle.dumps(SpecPCMiddleware(max_tokens=9, tools=["a"]))).tool_names == {"a"}


def test_threshold_and_names_of_tools(smol: SpecPC, reads: Any) -> None:
    tokens = smol.count_tokens([FOUND])[0]
    assert SpecPCMiddleware(smol, max_tokens=16, trigger_tokens=tokens).compress(conversation()) == conversation()
    assert SpecPCMiddleware(smol, max_tokens=16, tools=["other"]).compress(conversation()) == conversation()
    assert not reads
    for settings in ({"trigger_tokens": tokens - 1}, {"tools": ["search"]}, {"keep_ratio": 0.2, "max_tokens": None}):
        shortened = SpecPCMiddleware(smol, **({"max_tokens": 16} | settings)).compress(conversation())
        assert len(shortened[3].content) < len(FOUND) / 2
    several = [*conversation(), *conversation()[2:]]  # two results that only together are too long
    assert SpecPCMiddleware(smol, max_tokens=16, trigger_tokens=2 * tokens - 1).compress(several) != several
    assert SpecPCMiddleware(smol, max_tokens=16, trigger_tokens=2 * tokens).compress(several) == several


def test_errors(smol: SpecPC, tiny: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    for settings, message in [
        ({"max_tokens": 0}, "max_tokens"), ({"trigger_tokens": -1}, "trigger_tokens must be an integer >= 0; got -1"),
        ({"cache_size": 0}, "cache_size"), ({"tools": "search"}, "tools must be a list of names"),
        ({"on_error": "ignore"}, "on_error"),
    ]:  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            SpecPCMiddleware(smol, **settings)
    demanding: dict[str, Any] = {"max_tokens": 4, "protect": ["cyclists"]}
    with pytest.raises(ValueError, match="protected text needs"):
        SpecPCMiddleware(smol, **demanding).compress(conversation())
    calm = SpecPCMiddleware(smol, on_error="passthrough", **demanding)
    with caplog.at_level(logging.WARNING):
        assert calm.compress(conversation()) == conversation()
        assert calm.compress(conversation()) == conversation()
    assert caplog.text.count("uncompressed") == 2  # a failure is not remembered


@tool(response_format="content_and_artifact")
def search(query: str) -> tuple[str, list[Document]]:
    """Search the town's archive."""
    return FOUND, [Document(FOUND, metadata={"source": "archive"})]


class Recording(GenericFakeChatModel):
    """A scripted model, so that the agent's path is known; what it is sent is what is tested."""

    seen: Any

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(messages)
        return super()._generate(messages, *args, **kwargs)


def scripted() -> Any:
    call = {"name": "search", "args": {"query": "bridge"}, "id": "call-1", "type": "tool_call"}
    script = [AIMessage("", tool_calls=[call]), AIMessage("In 1932."), AIMessage("In 1821.")]
    return Recording(messages=iter(script), seen=[])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_in_an_agent_the_state_keeps_everything(smol: SpecPC, asynchronous: bool) -> None:
    model = scripted()
    agent = create_agent(
        model, tools=[search], middleware=[SpecPCMiddleware(smol, max_tokens=24)], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "1"}}
    given = {"messages": [HumanMessage(QUESTION)]}
    state = await agent.ainvoke(given, config) if asynchronous else agent.invoke(given, config)
    (result,) = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert result.content == FOUND
    assert result.artifact[0].metadata == {"source": "archive"}
    (sent,) = [message for message in model.seen[1] if isinstance(message, ToolMessage)]
    assert "1932" in sent.content
    assert len(sent.content) < len(FOUND) / 2
    assert sent.tool_call_id == model.seen[1][-2].tool_calls[0]["id"]
    second = {"messages": [HumanMessage("When was the mill built?")]}
    await agent.ainvoke(second, config) if asynchronous else agent.invoke(second, config)
    (sent,) = [message for message in model.seen[2] if isinstance(message, ToolMessage)]
    assert "1821" in sent.content


def test_with_a_model_that_answers_from_what_is_left(smol: SpecPC) -> None:
    """The real model behind a forced call: what is left of the result is enough for the answer."""

    class Obedient(ChatSpecKV):
        def _prepare(self, messages: Any, stop: Any, kwargs: Any) -> Any:
            asked = any(isinstance(message, ToolMessage) for message in messages)
            return super()._prepare(messages, stop, kwargs | {"tool_choice": "none" if asked else "any"})

    chat = Obedient(model=smol.draft, max_tokens=40)
    agent = create_agent(chat, tools=[search], middleware=[SpecPCMiddleware(smol, max_tokens=30)])
    state = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    assert "1932" in state["messages"][-1].content
    assert state["messages"][-2].content == FOUND


async def test_many_at_once(middleware: Any) -> None:
    alone = middleware.compress(conversation())
    found = await asyncio.gather(*(asyncio.to_thread(middleware.compress, conversation()) for _ in range(8)))
    assert all(result == alone for result in found)


def test_without_langchain_the_rest_works() -> None:
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "from draftapprox_integrations.langchain import ChatSpecKV\n"
        "try:\n    from draftapprox_integrations.langchain import SpecPCMiddleware\n"
        "except ImportError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "draftapprox-integrations[agents]" in found.stdout
