"""SpecKVLLM and ChatSpecKV in real LangChain pipelines."""

import asyncio
import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import (
    KVQuantization,
    LoadedModel,
    SpecKV,
    SpecKVConfig,
    SpecKVPCConfig,
    SpecPCConfig,
    load_model,
)
from draftapprox_integrations.engine import registry
from draftapprox_integrations.errors import GenerationTimeoutError, InvalidInputError
from draftapprox_integrations.langchain import ChatSpecKV, SpecKVLLM, SpecPCCompressor
from tests.conftest import tiny_llama
from tests.helpers.serving import (
    FLOAT32,
    LONG,
    TIGHT,
    Gate,
    batch_sizes,
    direct,
    forward_passes_need_the_event_loop,
    wait_until_idle,
)


@pytest.fixture
def tiny(endless: LoadedModel) -> Any:
    return endless


@pytest.fixture
def llm(tiny: LoadedModel) -> Any:
    return SpecKVLLM(tiny, config=TIGHT, max_tokens=8)


@pytest.fixture
def chat(tiny: LoadedModel) -> Any:
    return ChatSpecKV(tiny, config=TIGHT, max_tokens=8)


async def test_every_way_to_call_the_llm_gives_what_the_engine_gives(llm: Any, tiny: LoadedModel) -> None:
    expected = direct(tiny, LONG).text
    assert llm.invoke(LONG) == expected
    assert await llm.ainvoke(LONG) == expected
    assert "".join(llm.stream(LONG)) == expected
    assert "".join([piece async for piece in llm.astream(LONG)]) == expected
    assert llm.batch([LONG, LONG]) == [expected] * 2
    assert await llm.abatch([LONG, LONG]) == [expected] * 2
    result = llm.generate([LONG, "short"])
    info = result.generations[0][0].generation_info
    assert info["kept_kv"] == 32
    assert info["finish_reason"] == "length"
    assert info["token_usage"]["completion_tokens"] == 8
    assert result.llm_output["token_usage"]["completion_tokens"] == 16


def test_a_list_of_prompts_is_one_batch(llm: Any, tiny: LoadedModel) -> None:
    with batch_sizes(tiny) as sizes:
        llm.batch([LONG, LONG[5:], LONG[10:]])
    assert set(sizes) == {3}


async def test_every_way_to_call_the_chat_model_gives_what_the_engine_gives(chat: Any, tiny: LoadedModel) -> None:
    prompt = f"<|user|>{LONG}<|end|><|assistant|>"
    expected = direct(tiny, prompt, add_special_tokens=False)
    message = chat.invoke(LONG)
    assert message.content == expected.text
    assert message.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
    assert message.usage_metadata["output_tokens"] == 8
    assert message.usage_metadata["input_token_details"]["kept_kv"] == 32
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["method"] == "speckv"
    assert set(message.response_metadata["timings"]) == {"queued", "lookahead", "prefill", "decode", "total"}
    assert (await chat.ainvoke(LONG)).content == expected.text
    chunks = list(chat.stream(LONG))
    assert "".join(chunk.content for chunk in chunks) == expected.text
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    assert "".join([chunk.content async for chunk in chat.astream(LONG)]) == expected.text
    assert [m.content for m in chat.batch([LONG, LONG])] == [expected.text] * 2
    assert [m.content for m in await chat.abatch([LONG, LONG])] == [expected.text] * 2


async def test_abatch_shares_batches_and_leaves_the_loop_free(chat: Any, tiny: LoadedModel) -> None:
    with batch_sizes(tiny) as sizes, forward_passes_need_the_event_loop(tiny):
        await chat.abatch([LONG[i:] for i in range(6)], max_tokens=40)
    assert max(sizes) > 1
    assert len(sizes) < 6 * 40


def test_settings_of_a_call_win(chat: Any, llm: Any, tiny: LoadedModel) -> None:
    assert chat.invoke(LONG, max_tokens=3).usage_metadata["output_tokens"] == 3
    assert chat.bind(max_new_tokens=2).invoke(LONG).usage_metadata["output_tokens"] == 2
    full = llm.invoke(LONG)
    assert llm.invoke(LONG, stop=[full[3:5]]) == full[: full.index(full[3:5])]
    stopping = SpecKVLLM(tiny, config=TIGHT, max_tokens=8, stop=full[3:5])
    assert stopping.invoke(LONG) == full[: full.index(full[3:5])]
    sampled = {llm.invoke(LONG, temperature=1.5, seed=seed) for seed in (1, 1, 2)}
    assert len(sampled) == 2
    assert SpecKVLLM(tiny, config=TIGHT, max_new_tokens=3).max_tokens == 3
    with pytest.raises(ValueError, match="tempratur"):
        llm.invoke(LONG, tempratur=1)  # transformers names what it does not know
    with pytest.raises(ValueError, match="tempratur"):
        SpecKVLLM(tiny, tempratur=1)


def test_methods(tiny: LoadedModel) -> None:
    specpc = SpecPCConfig(max_capacity_prompt=64, window_size=16)
    cases = {
        "full": (None, None),
        "specpc": (specpc, 64),
        "speckvpc": (SpecKVPCConfig(specpc_config=specpc, speckv_config=TIGHT), 32),
        "speckv": (TIGHT, 32),
    }
    for method, (config, kept) in cases.items():
        message = ChatSpecKV(tiny, method=method, config=config, max_tokens=4).invoke(LONG)
        tokens = message.usage_metadata["input_tokens"]
        assert message.response_metadata["kept_kv"] == (kept or tokens), method
        assert (message.response_metadata["kept_kv_bytes"] is None) == (method in ("full", "specpc")), method
        assert message.response_metadata["method"] == method
        if config is not None:
            assert ChatSpecKV(tiny, config=config).method == method
    ids = tiny.tokenizer(f"<|user|>{LONG}<|end|><|assistant|>", add_special_tokens=False, return_tensors="pt")
    plain = tiny.model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    full = ChatSpecKV(tiny, method="full", max_tokens=4).invoke(LONG).content
    assert full == tiny.tokenizer.decode(plain[0, -4:])
    with pytest.raises(InvalidInputError, match="must be one of 'speckv', 'speckvpc', 'specpc', 'full'; got 'fast'"):
        ChatSpecKV(tiny, method="fast")
    with pytest.raises(InvalidInputError, match='method "speckv" takes a SpecKVConfig; got SpecPCConfig'):
        ChatSpecKV(tiny, method="speckv", config=specpc)
    with pytest.raises(InvalidInputError, match="has no settings"):
        ChatSpecKV(tiny, method="full", config=TIGHT)


def test_parts_that_name_the_same_share_one_engine(tiny: LoadedModel) -> None:
    one = ChatSpecKV(tiny, config=TIGHT)
    two = SpecKVLLM(tiny, config=SpecKVConfig(max_capacity_prompt=32, window_size=8, lookahead_tokens=4))
    assert one.load() is two.load()
    assert ChatSpecKV(tiny).load() is not one.load()
    shared = SpecKV(tiny, "self", TIGHT)
    assert ChatSpecKV(shared).load() is shared
    assert ChatSpecKV(shared).config == TIGHT
    with pytest.raises(InvalidInputError, match="brings its own"):
        ChatSpecKV(shared, config=SpecKVConfig())
    engine = weakref.ref(one.load())
    one.close()
    two.close()
    gc.collect()
    assert engine() is None
    assert one.invoke("hello")  # and it comes back


def test_nothing_is_loaded_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load_model", lambda *_, **__: pytest.fail("loaded"))
    chat = ChatSpecKV("some/model", draft="other/model")
    bound: Any = chat.bind_tools([{"name": "f", "description": "d", "parameters": {}}])
    assert bound.kwargs["tool_choice"] == "auto"
    assert (chat._get_ls_params()["ls_model_name"], chat.draft) == ("some/model", "other/model")


def test_pickled_without_weights(tiny: LoadedModel, embedded_model: LoadedModel) -> None:
    chat = ChatSpecKV("default", config=TIGHT, max_tokens=5)
    first = chat.invoke("Hello").content
    data = pickle.dumps(chat)
    assert len(data) < 5000
    again = pickle.loads(data)
    assert again == chat
    assert again.invoke("Hello").content == first
    with pytest.raises(InvalidInputError, match=r"without its model, which was an object \(Llama.*model=\.\.\."):
        pickle.loads(pickle.dumps(ChatSpecKV(tiny))).invoke("x")
    assert "weight" not in repr(chat)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("kind", [ChatSpecKV, SpecKVLLM])
def test_saved_the_langchain_way(kind: Any, tiny: LoadedModel, embedded_model: LoadedModel) -> None:
    def again(part: Any) -> Any:
        return loads(dumps(part), allowed_objects=[kind], valid_namespaces=["draftapprox_integrations"])

    quantized = SpecKVConfig(max_capacity_prompt=32, kv_quantization=KVQuantization(bits=4), lookahead_tokens=0)
    cascade = SpecKVPCConfig(specpc_config=SpecPCConfig(max_capacity_prompt=99))
    for settings in (
        {"config": TIGHT, "stop": "x", "generate_kwargs": {"repetition_penalty": 1.1}, "temperature": 0.5, "seed": 0},
        {"config": quantized, "draft": None, "loading": {"dtype": torch.float32, "device": torch.device("cpu")}},
        {"config": cascade, "max_batch_size": 1, "timeout": 9.0},
        {"method": "full"},
    ):
        part = kind("default", **settings)
        copied = again(part)
        assert copied == part
        assert copied.model_dump() == part.model_dump()
        assert copied.config == part.config
    part = kind("default", config=TIGHT, max_tokens=5)
    expected = part.invoke("Hello")
    assert again(part) == part  # also once the models are loaded
    assert again(part).load() is part.load()
    assert getattr(again(part).invoke("Hello"), "content", expected) == getattr(expected, "content", expected)
    with pytest.raises(InvalidInputError, match=r"without its model, which was an object \(Llama.*model=\.\.\."):
        again(kind(tiny)).invoke("x")
    with pytest.raises(InvalidInputError, match=r"without its draft, which was an object \(Llama.*draft=\.\.\."):
        again(kind("default", draft=tiny)).invoke("x")


def test_a_profile_is_read_from_the_loaded_model(tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatSpecKV(tiny, config=TIGHT, max_tokens=2)
    assert chat.profile is None  # nothing was loaded yet
    chat.invoke("Hello")
    assert chat.profile["max_input_tokens"] == 4096
    assert chat.profile["text_inputs"]
    assert not chat.profile["image_inputs"]
    assert not chat.profile["tool_calling"]  # its template renders no tools
    assert chat.profile["structured_output"]
    assert chat == ChatSpecKV(tiny, config=TIGHT, max_tokens=2)
    assert chat != ChatSpecKV(tiny, config=TIGHT, max_tokens=3)
    given = ChatSpecKV(tiny, profile={"max_input_tokens": 5})
    given.load()
    assert given.profile == {"max_input_tokens": 5}


def test_langchains_cache_tells_settings_apart(tiny: LoadedModel) -> None:
    cache = InMemoryCache()
    calls = []
    handle = tiny.model.register_forward_pre_hook(lambda *_: calls.append(1))
    for config in (TIGHT, TIGHT, SpecKVConfig(max_capacity_prompt=40, window_size=8, lookahead_tokens=4)):
        before = len(calls)
        ChatSpecKV(tiny, config=config, cache=cache, max_tokens=4).invoke(LONG)
        SpecKVLLM(tiny, config=config, cache=cache, max_tokens=4).invoke(LONG)
        calls.append(len(calls) - before)
    handle.remove()
    runs = [number for number in calls if number != 1]
    assert runs[1] == 0
    assert runs[0] == runs[2] > 0


@pytest.mark.parametrize("kind", [ChatSpecKV, SpecKVLLM])
def test_langchains_cache_tells_objects_apart(kind: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def text(part: Any) -> Any:
        found = part.invoke(LONG)
        return found if isinstance(found, str) else found.content

    first, second = tiny_llama(eos_token_id=None), tiny_llama(eos_token_id=None, initializer_range=0.3)
    other = copy.deepcopy(tiny_tokenizer)
    cache = InMemoryCache()
    specs = [(first, tiny_tokenizer), (second, tiny_tokenizer), (first, other), load_model((second, other))]
    for spec in specs:
        part = kind(spec, method="full", max_tokens=6, cache=cache)
        assert text(part) == text(kind(spec, method="full", max_tokens=6, cache=False))
        assert text(kind(spec, method="full", max_tokens=6, cache=cache)) == text(part)
    drafts = [kind(specs[0], draft=spec, config=TIGHT, max_tokens=6, cache=cache) for spec in (specs[1], specs[0])]
    for part in drafts:
        text(part)
    assert len(cache._cache) == len(specs) + len(drafts)


@pytest.mark.parametrize("kind", [ChatSpecKV, SpecKVLLM])
def test_langchains_cache_tells_ways_to_load_apart(kind: Any) -> None:
    ways: Any = [None, {"dtype": "float32"}, {"dtype": "bfloat16"}, {"revision": "a"}, {"revision": "b"}]
    ways += [{"attn_implementation": "eager"}, {"device": "cpu"}]
    keys = {str(sorted(kind("default", loading=way)._identifying_params.items())) for way in ways}
    assert len(keys) == len(ways)
    assert (
        len({str(kind("default", loading={"dtype": t})._identifying_params) for t in ("float32", torch.float32)}) == 1
    )
    if kind is ChatSpecKV:
        assert len({ChatSpecKV("default", loading=way)._get_llm_string() for way in ways}) == len(ways)


@pytest.mark.parametrize("kind", [ChatSpecKV, SpecKVLLM])
def test_langchains_cache_sees_a_changed_field(kind: Any, tiny: LoadedModel) -> None:
    part = kind(tiny, config=TIGHT, cache=InMemoryCache(), max_tokens=8)

    def text() -> Any:
        found = part.invoke(LONG)
        return found if isinstance(found, str) else found.content

    whole = text()
    part.max_tokens = 3
    assert len(text()) < len(whole)
    part.max_tokens, part.stop = 8, [whole[2:4]]
    assert text() == whole[: whole.index(whole[2:4])]


def test_callbacks_see_tokens_and_usage(chat: Any, tiny: LoadedModel) -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.tokens.append(token)

    seen, usage = Seen(), UsageMetadataCallbackHandler()
    message = chat.invoke(LONG, config={"callbacks": [seen, usage]}, stream=True)
    text = "".join(chunk.content for chunk in chat.stream(LONG, config={"callbacks": [seen, usage]}))
    assert "".join(seen.tokens) in (text, message.content + text)
    (counted,) = usage.usage_metadata.values()
    assert counted["output_tokens"] == 16


def test_counting_tokens(chat: Any, llm: Any, tiny: LoadedModel) -> None:
    assert llm.get_num_tokens("Hello there") == len(tiny.tokenizer("Hello there")["input_ids"])
    messages = [SystemMessage("Be brief."), HumanMessage("Hello there")]
    shown = "<|system|>Be brief.<|end|><|user|>Hello there<|end|><|assistant|>"
    assert chat.get_num_tokens_from_messages(messages) == len(
        tiny.tokenizer(shown, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_trimming_a_conversation_to_fit(chat: Any, strategy: Any) -> None:
    assert chat.get_num_tokens_from_messages([]) == 0
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("One. " * 40),
        AIMessage("Two.\n" * 40),
        HumanMessage("Three."),
    ]
    limit = chat.get_num_tokens_from_messages(messages) - 30
    kept = trim_messages(messages, token_counter=chat, strategy=strategy, max_tokens=limit, allow_partial=True)
    assert 0 < chat.get_num_tokens_from_messages(kept) <= limit
    assert trim_messages(messages, token_counter=chat, strategy=strategy, max_tokens=1, allow_partial=True) == []


def test_messages_of_every_kind(chat: Any, tiny: LoadedModel) -> None:
    messages = [
        SystemMessage([{"type": "text", "text": "Be brief."}, "Please."]),
        ChatMessage(role="user", content="Hello"),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Hi"}]),
        HumanMessage("Bye"),
    ]
    shown = (
        "<|system|>Be brief.\nPlease.<|end|><|user|>Hello<|end|><|assistant|>Hi<|end|><|user|>Bye<|end|><|assistant|>"
    )
    assert chat.invoke(messages).content == direct(tiny, shown, add_special_tokens=False).text
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:..."}}])
    with pytest.raises(InvalidInputError, match="block of type 'image_url'; the target reads text only"):
        chat.invoke([image])
    with pytest.raises(InvalidInputError, match="role 'narrator'"):
        chat.invoke([ChatMessage(role="narrator", content="x")])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], (InvalidInputError, ValueError), "no messages|at least one"),
        ("word " * 5000, InvalidInputError, "reads at most 4096"),
    ],
)
def test_bad_input_is_refused_and_it_serves_on(chat: Any, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        chat.invoke(given)
    with pytest.raises(error, match=message):
        list(chat.stream(given))
    assert chat.invoke("Hello").content


def test_a_timeout(tiny: LoadedModel) -> None:
    with Gate(tiny, free_passes=0), pytest.raises(GenerationTimeoutError):
        ChatSpecKV(tiny, config=TIGHT, max_tokens=3000, timeout=0.1).invoke(LONG)


async def test_a_cancelled_task_stops_its_generation(chat: Any, tiny: LoadedModel) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in chat.astream(LONG, max_tokens=3000):
            started.set()

    with Gate(tiny, free_passes=50) as gate:
        task = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await asyncio.to_thread(wait_until_idle, chat.load())
        assert gate.passes <= 51


def test_a_stream_left_early_stops_its_generation(chat: Any, tiny: LoadedModel) -> None:
    with Gate(tiny, free_passes=50) as gate:
        stream = chat.stream(LONG, max_tokens=3000)
        next(stream)
        stream.close()
        gate.open()
        wait_until_idle(chat.load())
        assert gate.passes <= 51


def test_another_model_for_one_call(embedded_model: LoadedModel, tiny: LoadedModel) -> None:
    chat = ChatSpecKV(tiny, config=TIGHT, max_tokens=3)
    message = chat.invoke("Hello", model="default")
    assert message.response_metadata["model_name"] == "default"
    assert chat.invoke("Hello").response_metadata["model_name"] != "default"


class Year(BaseModel):
    """A year."""

    year: int


def test_forced_calls_and_structured_output(embedded_model: LoadedModel) -> None:
    chat = ChatSpecKV("default", max_tokens=40)
    message = chat.bind_tools([Year], tool_choice="Year").invoke("In 1932 the bridge was opened. In which year?")
    assert message.tool_calls[0]["name"] == "Year"
    assert isinstance(message.tool_calls[0]["args"]["year"], int)
    streamed: Any = None
    for chunk in chat.bind_tools([Year], tool_choice="any").stream("In 1932 the bridge was opened. In which year?"):
        assert not chunk.content  # the call is not shown as text
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == message.tool_calls[0]["args"]
    for method in ("json_schema", "function_calling", "json_mode"):
        found = chat.with_structured_output(Year, method=method).invoke("In which year was the bridge opened? In 1932.")
        assert isinstance(found, Year)
    short = ChatSpecKV("default", max_tokens=2)
    raw = short.with_structured_output(Year, include_raw=True).invoke("In which year? In 1932.")
    assert raw["parsed"] is None
    assert raw["parsing_error"] is not None  # two tokens are not enough, and that is told
    with pytest.raises(InvalidInputError, match="method must be"):
        chat.with_structured_output(Year, method="magic")


def test_an_answer_that_was_cut_off_is_never_taken_for_a_whole_one(embedded_model: LoadedModel) -> None:
    question = "In which year was the bridge opened? In 1932."
    chat = ChatSpecKV("default", max_tokens=40, loading=FLOAT32)
    shapes = (Year, Year.model_json_schema())
    whole = [dict(chat.with_structured_output(shape).invoke(question)) for shape in shapes]
    cut = 0
    for most in range(2, 9):
        shape, expected = shapes[most % 2], whole[most % 2]
        short = ChatSpecKV("default", max_tokens=most, loading=FLOAT32).with_structured_output(shape)
        try:
            found = short.invoke(question)
        except OutputParserException:
            cut += 1
        else:
            assert dict(found) == expected
    assert cut > 3
    for shape in (Year, convert_to_openai_tool(Year)):
        with pytest.raises(OutputParserException, match="raise max_tokens"):
            ChatSpecKV("default", max_tokens=5, loading=FLOAT32).with_structured_output(
                shape, method="function_calling"
            ).invoke(question)
    forced = ChatSpecKV("default", max_tokens=5, loading=FLOAT32).bind_tools([Year], tool_choice="any")
    message = forced.invoke(question)
    assert (message.content, message.tool_calls) == ("", [])
    assert "cut off" in message.invalid_tool_calls[0]["error"]
    streamed: Any = None
    for chunk in forced.stream(question):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.content == ""
    assert not streamed.tool_calls
    assert len(streamed.invalid_tool_calls) == 1


def test_an_agent_takes_its_strategy_from_the_profile(embedded_model: LoadedModel) -> None:
    chat = ChatSpecKV("default", max_tokens=40, loading=FLOAT32)
    chat.load()
    asked = []

    class Watcher(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            asked.append(kwargs["invocation_params"])

    agent = create_agent(chat, response_format=Year)
    question = {"messages": [("user", "In which year was the bridge opened? In 1932.")]}
    state = agent.invoke(question, {"callbacks": [Watcher()]})
    assert asked[0]["response_format"]["type"] == "json_schema"  # not a tool that stands for the answer
    assert isinstance(state["structured_response"], Year)


def test_a_conversation_with_tool_results(embedded_model: LoadedModel) -> None:
    chat = ChatSpecKV("default", max_tokens=30).bind_tools([Year])
    answer = chat.invoke(
        [
            HumanMessage("When was the bridge opened?"),
            AIMessage("", tool_calls=[{"name": "Year", "args": {"year": 1932}, "id": "a"}]),
            ToolMessage("It was opened in 1932.", tool_call_id="a", name="Year"),
        ]
    )
    assert "1932" in answer.content


def test_a_rag_chain(embedded_model: LoadedModel) -> None:
    """Retrieved documents through SpecPC, a prompt, the chat model with SpecKV, a parser."""
    from langchain_core.documents import Document

    documents = [
        Document("The old mill was built in 1821. Today it is a museum. It closes in winter."),
        Document("The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning."),
    ]
    question = "In which year was the bridge opened?"
    compressor = SpecPCCompressor("default", max_tokens=30)
    kept = compressor.compress_documents(documents, question)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from the context: {context}"), ("user", "{question}")]
    )
    chat = ChatSpecKV("default", draft="default", config=SpecKVConfig(max_capacity_prompt=48), max_tokens=24)
    chain = prompt | chat | StrOutputParser()
    answer = chain.invoke({"context": " ".join(d.page_content for d in kept), "question": question})
    assert "1932" in answer
