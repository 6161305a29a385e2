"""SpecKVLLM in real LlamaIndex pipelines."""

import asyncio
import copy
import pickle
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import ChatSpecKV
from draftapprox_integrations.llama_index import SpecKVLLM, SpecPCPostprocessor
from tests.helpers.serving import LONG, TIGHT, direct, forward_passes_need_the_event_loop, wait_until_idle


@pytest.fixture
def tiny(endless: LoadedModel) -> Any:
    return endless


@pytest.fixture
def llm(tiny: LoadedModel) -> Any:
    return SpecKVLLM(tiny, config=TIGHT, max_tokens=8)


async def test_the_eight_ways_to_call_it_agree(llm: Any, tiny: LoadedModel) -> None:
    expected = direct(tiny, f"<|user|>{LONG}<|end|><|assistant|>", add_special_tokens=False)
    messages = [ChatMessage(role="user", content=LONG)]
    usage = {
        "prompt_tokens": expected.usage.prompt_tokens, "completion_tokens": 8,
        "total_tokens": expected.usage.prompt_tokens + 8, "kept_kv": 32,
        "kept_prompt_tokens": expected.usage.prompt_tokens, "kept_kv_bytes": expected.usage.kept_kv_bytes,
    }  # fmt: skip
    whole = [llm.complete(LONG), await llm.acomplete(LONG), llm.chat(messages), await llm.achat(messages)]
    streams = [
        list(llm.stream_complete(LONG)),
        [part async for part in await llm.astream_complete(LONG)],
        list(llm.stream_chat(messages)),
        [part async for part in await llm.astream_chat(messages)],
    ]
    for response in [*whole, *(parts[-1] for parts in streams)]:
        text = response.text if hasattr(response, "text") else response.message.content
        assert text == expected.text
        assert response.raw["usage"] == usage
        assert response.additional_kwargs["prompt_tokens"] == usage["prompt_tokens"]
        assert response.raw["finish_reason"] == "length"
    for parts in streams:
        assert "".join(part.delta for part in parts) == expected.text
        assert len(parts) > 3
        assert not any(part.raw for part in parts[:-1])
    assert llm.complete(LONG, formatted=True).text == direct(tiny, LONG).text


def test_events_and_token_counts(tiny: LoadedModel) -> None:
    seen = []

    class Watcher(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            seen.append(event.class_name())

    watcher = Watcher()
    get_dispatcher().add_event_handler(watcher)
    counter = TokenCountingHandler(tokenizer=tiny.tokenizer.encode)
    llm = SpecKVLLM(tiny, config=TIGHT, max_tokens=5, callback_manager=CallbackManager([counter]))
    llm.chat([ChatMessage(role="user", content=LONG)])
    list(llm.stream_complete("Hello"))
    get_dispatcher().event_handlers.remove(watcher)
    for name in ("LLMChatStartEvent", "LLMChatEndEvent", "LLMCompletionInProgressEvent", "LLMCompletionEndEvent"):
        assert name in seen
    assert counter.total_llm_token_count > 100


async def test_streams_at_once_leave_the_loop_free_and_stop_when_left(llm: Any, tiny: LoadedModel) -> None:
    async def read(number: Any) -> Any:
        stream = await llm.astream_complete(LONG[number:], max_new_tokens=30 if number % 2 else 3000)
        text = ""
        async for part in stream:
            text = part.text
            if number % 2 == 0:
                await stream.aclose()
                return None
        return text

    with forward_passes_need_the_event_loop(tiny):
        found = await asyncio.wait_for(asyncio.gather(*(read(number) for number in range(8))), 60)
    for number in range(1, 8, 2):
        prompt = f"<|user|>{LONG[number:]}<|end|><|assistant|>"
        assert found[number] == direct(tiny, prompt, max_new_tokens=30, add_special_tokens=False).text
    await asyncio.to_thread(wait_until_idle, llm.load())


def test_metadata_follows_the_model(tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    llm = SpecKVLLM(tiny, config=TIGHT, max_tokens=7)
    assert llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model
    assert (llm.metadata.context_window, llm.metadata.num_output) == (4096, 7)
    assert SpecKVLLM(tiny, context_window=2000).metadata.context_window == 2000


def test_saved_and_pickled_without_weights(tiny: LoadedModel, embedded_model: LoadedModel) -> None:
    llm = SpecKVLLM("default", config=TIGHT, max_tokens=4, temperature=0.0)
    expected = llm.complete("Hello").text
    data = pickle.dumps(llm)
    assert len(data) < 10_000
    for again in (pickle.loads(data), SpecKVLLM.from_dict(llm.to_dict()), SpecKVLLM.from_json(llm.to_json())):
        assert again.config == TIGHT
        assert again.complete("Hello").text == expected
        assert again.load() is llm.load()
    cascade = SpecKVLLM("default", config=SpecKVPCConfig(specpc_config=SpecPCConfig(max_capacity_prompt=99)))
    again = SpecKVLLM.from_dict(cascade.to_dict())
    assert (again.method, again.config) == ("speckvpc", cascade.config)
    with pytest.raises(InvalidInputError, match="without its model"):
        pickle.loads(pickle.dumps(SpecKVLLM(tiny))).complete("x")


def test_the_frameworks_share_an_engine(tiny: LoadedModel) -> None:
    assert SpecKVLLM(tiny, config=TIGHT).load() is ChatSpecKV(tiny, config=TIGHT).load()


def test_settings_of_a_call_win(llm: Any) -> None:
    assert llm.complete(LONG, max_new_tokens=2).raw["usage"]["completion_tokens"] == 2
    assert llm.complete(LONG, max_tokens=3).raw["usage"]["completion_tokens"] == 3
    full = llm.complete(LONG).text
    assert llm.complete(LONG, stop=[full[2:4]]).text == full[: full.index(full[2:4])]


def test_messages_of_every_kind(llm: Any, tiny: LoadedModel) -> None:
    history = [
        ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
        ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text="Hello"), TextBlock(text="you")]),
        ChatMessage(role=MessageRole.ASSISTANT, content="Hi"),
        ChatMessage(role=MessageRole.USER, content="Bye"),
    ]
    shown = "<|system|>Be brief.<|end|><|user|>Hello\nyou<|end|><|assistant|>Hi<|end|><|user|>Bye<|end|><|assistant|>"
    assert llm.chat(history).message.content == direct(tiny, shown, add_special_tokens=False).text
    image = ChatMessage(role="user", blocks=[ImageBlock(url="http://localhost/x.png")])
    with pytest.raises(InvalidInputError, match="'image'; the target reads text only"):
        llm.chat([image])
    for call in (lambda: llm.chat([]), lambda: llm.complete("")):
        with pytest.raises(InvalidInputError, match="no messages|prompt is empty"):
            call()
    assert llm.complete("Hello").text


def test_a_query_engine_with_both_methods(embedded_model: LoadedModel) -> None:
    documents = [
        Document(text="The old mill was built in 1821. Today it is a museum. It closes in winter."),
        Document(text="The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning."),
    ]
    Settings.tokenizer = embedded_model.tokenizer.encode
    try:
        index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))
        llm = SpecKVLLM("default", draft="default", config=SpecKVConfig(max_capacity_prompt=64), max_tokens=16)
        engine = index.as_query_engine(llm=llm, node_postprocessors=[SpecPCPostprocessor("default", max_tokens=30)])
        response = engine.query("In which year was the bridge opened?")
        assert "1932" in str(response)
        assert response.source_nodes
        streamed = index.as_query_engine(llm=llm, streaming=True).query("In which year was the bridge opened?")
        assert "1932" in "".join(streamed.response_gen)
        chat = SimpleChatEngine.from_defaults(llm=llm)
        chat.chat("The code is 4711.")
        assert "4711" in str(chat.chat("What is the code?"))
    finally:
        Settings.tokenizer = None  # type: ignore[assignment]


class Year(BaseModel):
    """A year."""

    year: int


class Flag(BaseModel):
    """A flag."""

    up: bool


async def test_answers_of_a_given_shape(embedded_model: LoadedModel) -> None:
    llm = SpecKVLLM("default", max_tokens=40)
    prompt = PromptTemplate("The bridge was opened in 1932. {question}")
    assert llm.structured_predict(Year, prompt, question="In which year?") == Year(year=1932)
    assert await llm.astructured_predict(Year, prompt, question="In which year?") == Year(year=1932)
    response = llm.as_structured_llm(Year).complete("The bridge was opened in 1932. In which year?")
    assert response.raw == Year(year=1932)
    with pytest.raises(ValueError, match="Invalid JSON"):
        llm.structured_predict(Year, prompt, llm_kwargs={"max_new_tokens": 2}, question="In which year?")


async def test_streams_of_a_given_shape(embedded_model: LoadedModel) -> None:
    llm = SpecKVLLM("default", max_tokens=40)
    prompt = PromptTemplate("The bridge was opened in 1932. {question}")
    parts = list(llm.stream_structured_predict(Year, prompt, question="In which year?"))
    stream = await llm.astream_structured_predict(Year, prompt, question="In which year?")
    for found in (parts, [part async for part in stream]):
        assert found[-1] == llm.structured_predict(Year, prompt, question="In which year?")
        assert isinstance(found[-1], Year)
        assert found[0].year is None  # only "{" was written
    shaped = list(llm.as_structured_llm(Year).stream_chat([ChatMessage("The bridge was opened in 1932. Which year?")]))
    assert isinstance(shaped[-1].raw, Year)
    with pytest.raises(ValueError, match="Invalid JSON"):
        list(llm.stream_structured_predict(Year, prompt, llm_kwargs={"max_new_tokens": 2}, question="In which year?"))
    short = await llm.astream_structured_predict(Year, prompt, llm_kwargs={"max_new_tokens": 2}, question="When?")
    with pytest.raises(ValueError, match="Invalid JSON"):
        [part async for part in short]


def prompt_of(llm: Any, call: Any) -> str:
    """The prompt that the target reads."""
    seen: list[Any] = []
    engine = llm.load()
    requests = engine._requests

    def noting(prompts: Any, **options: Any) -> Any:
        seen.extend(prompts)
        return requests(prompts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_requests", noting)
        call(llm)
    return str(engine.target.tokenizer.decode(seen[0]))


def test_prompts_of_ones_own_take_the_place_of_the_chat_template(tiny: LoadedModel) -> None:
    def made(**given: Any) -> Any:
        return SpecKVLLM(tiny, method="full", max_tokens=1, **given)

    def of_messages(messages: Any) -> str:
        return "<|user|>" + "/".join(f"{m.role.value}:{m.content}" for m in messages)

    chat = [ChatMessage(role="user", content="Hello")]
    template = PromptTemplate("{what}")
    calls = {
        "complete": lambda llm: llm.complete("Hello"),
        "stream_complete": lambda llm: list(llm.stream_complete("Hello")),
        "formatted": lambda llm: llm.complete("Hello", formatted=True),
        "chat": lambda llm: llm.chat(chat),
        "stream_chat": lambda llm: list(llm.stream_chat(chat)),
        "predict": lambda llm: llm.predict(template, what="Hello"),
    }
    found = {
        (name, field): prompt_of(made(**given), call)
        for name, call in calls.items()
        for field, given in {
            "system_prompt": {"system_prompt": "Be brief."},
            "completion_to_prompt": {"completion_to_prompt": lambda text: f"<<{text}>>"},
            "messages_to_prompt": {"messages_to_prompt": of_messages},
        }.items()
    }
    plain = "<|user|>Hello<|end|><|assistant|>"
    for name in ("complete", "stream_complete"):
        assert found[name, "system_prompt"] == "<|system|>Be brief.<|end|>" + plain
        assert found[name, "completion_to_prompt"] == "<<Hello>>"
        assert found[name, "messages_to_prompt"] == "<|user|>user:Hello"
    for name in ("chat", "stream_chat"):
        assert found[name, "system_prompt"] == plain  # as in LlamaIndex's own classes: predict and agents add it
        assert found[name, "completion_to_prompt"] == plain
        assert found[name, "messages_to_prompt"] == "<|user|>user:Hello"
    assert found["predict", "system_prompt"] == "<|system|>Be brief.<|end|>" + plain
    assert found["predict", "messages_to_prompt"] == "<|user|>user:Hello"
    assert {found["formatted", field] for _, field in found} == {"Hello"}


def test_a_system_prompt_without_a_chat_template(tiny: LoadedModel) -> None:
    bare = copy.deepcopy(tiny.tokenizer)
    bare.chat_template = None
    llm = SpecKVLLM((tiny.model, bare), method="full", max_tokens=1, system_prompt="Be brief.")
    assert prompt_of(llm, lambda llm: llm.complete("Hello")) == "Be brief.\n\nHello"
    assert prompt_of(llm, lambda llm: llm.predict(PromptTemplate("Hello"))) == "Be brief.\n\nHello"


def test_a_prompt_of_ones_own_is_told_the_schema_and_has_no_place_for_tools(tiny: LoadedModel) -> None:
    llm = SpecKVLLM(tiny, max_tokens=60, messages_to_prompt=lambda messages: "\n".join(m.content for m in messages))
    seen = prompt_of(llm, lambda llm: llm.structured_predict(Flag, PromptTemplate("Hello")))
    assert '"title": "Flag"' in seen
    assert seen.endswith("Hello")
    with pytest.raises(InvalidInputError, match="messages_to_prompt takes the place"):
        llm.chat_with_tools([FunctionTool.from_defaults(opened)], "Hello")


def opened(year: int) -> str:
    """Look up what was opened in a year."""
    return f"The bridge was opened in {year}."


TOOLS_TEMPLATE = (
    "{% if tools %}<|system|>Tools: {% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_tools(embedded_model: LoadedModel) -> None:
    llm = SpecKVLLM("default", max_tokens=40)
    tool = FunctionTool.from_defaults(opened)
    response = llm.chat_with_tools([tool], "What was opened in 1932?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "opened"
    assert isinstance(call.tool_kwargs["year"], int)
    block = next(b for b in response.message.blocks if isinstance(b, ToolCallBlock))
    assert block.tool_call_id == call.tool_id
    parts = list(llm.stream_chat_with_tools([tool], "What was opened in 1932?", tool_required=True))
    assert llm.get_tool_calls_from_response(parts[-1])[0].tool_kwargs == call.tool_kwargs
    assert not "".join(part.delta for part in parts)
    follow_up = [
        ChatMessage(role="user", content="What was opened in 1932?"),
        response.message,
        ChatMessage(
            role="tool",
            content="The bridge was opened in 1932.",
            additional_kwargs={"tool_call_id": call.tool_id, "name": "opened"},
        ),
    ]
    assert "bridge" in llm.chat(follow_up).message.content
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(llm.chat([ChatMessage(role="user", content="Hi")]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # LlamaIndex's own database
async def test_an_agent_calls_a_tool_and_answers(
    tiny_tokenizer: PreTrainedTokenizerFast, embedded_model: LoadedModel
) -> None:
    """A model that always begins with a call, as a good one would: what is tested is the way to the tool and back."""
    calls = []

    def look_up(year: int) -> str:
        """Look up what was opened in a year."""
        calls.append(year)
        return f"The bridge was opened in {year}."

    class Obedient(SpecKVLLM):
        def _prepare_chat(self, messages: Any, kwargs: Any) -> Any:
            asked = any(message.role == MessageRole.TOOL for message in messages)
            return super()._prepare_chat(messages, kwargs | {"tool_choice": "none" if asked else "any"})

        @property
        def metadata(self) -> Any:
            return super().metadata.model_copy(update={"is_function_calling_model": True})

    agent = FunctionAgent(tools=[look_up], llm=Obedient(model="default", max_tokens=40))
    result = await agent.run("What was opened in 1932?")
    assert len(calls) == 1
    assert "bridge" in str(result)


def test_a_wrong_name_is_said_and_both_names_of_the_limit_count(tiny: LoadedModel) -> None:
    for wrong in ({"model_name": "owner/other"}, {"temprature": 1.0}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}\n.*not permitted"):
            SpecKVLLM(tiny, **wrong)
    for name in ("max_tokens", "max_new_tokens"):
        llm = SpecKVLLM(tiny, **{name: 3})
        assert llm.complete(LONG).raw["usage"]["completion_tokens"] == 3
        assert SpecKVLLM.from_dict(llm.to_dict()).max_tokens == 3


def test_a_forced_call_that_was_cut_off(embedded_model: LoadedModel) -> None:
    llm = SpecKVLLM("default", max_tokens=5)
    response = llm.chat_with_tools([FunctionTool.from_defaults(opened)], "What was opened in 1932?", tool_required=True)
    (bad,) = response.additional_kwargs["invalid_tool_calls"]
    assert "cut off" in bad["error"]
    with pytest.raises(ValueError, match="at least one tool call.*cut off"):
        llm.get_tool_calls_from_response(response)
