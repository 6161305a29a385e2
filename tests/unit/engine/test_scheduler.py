"""The queue: batches, fairness, cancellation, timeouts, errors, closing."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPCConfig, load_model
from draftapprox_integrations.engine.scheduler import Scheduler
from draftapprox_integrations.errors import (
    EngineClosedError,
    GenerationTimeoutError,
    InvalidInputError,
    ScoringError,
)
from draftapprox_integrations.models.attention import attention_view
from tests.conftest import tiny_llama
from tests.helpers.serving import wait_until_idle

TIGHT = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. Today it is a small museum. " * 3


@pytest.fixture
def pair(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    draft = tiny_llama(num_hidden_layers=2, hidden_size=32, head_dim=8)
    return load_model((target, tiny_tokenizer)), load_model((draft, tiny_tokenizer))


def prompts(count: Any) -> Any:
    return [f"{number}. {LONG[number:]}" for number in range(count)]


@contextmanager
def on_forward(model: Any, hook: Any) -> Iterator[Any]:
    """Call `hook()` before each forward pass of the model, in the thread that runs it."""
    handle = model.register_forward_pre_hook(lambda *_: hook())
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.thorough
async def test_32_streams_at_once_half_of_them_cancelled(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT)
    loop, first_piece = asyncio.get_running_loop(), asyncio.Event()
    texts = prompts(32)
    alone = [engine.generate(text, max_new_tokens=24)[0].text for text in texts]

    async def read(number: Any) -> Any:
        found = ""
        async for piece in engine.astream(texts[number], max_new_tokens=24):
            found += piece
            first_piece.set()
            if number % 4 == 1 and len(found) > 3:
                break  # the reader leaves
        return found

    def wait_for_the_loop() -> None:  # during every step of the target: fails if generating blocks the event loop
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        assert turned.wait(60)

    with on_forward(attention_view(pair[0].model), wait_for_the_loop):
        tasks = [asyncio.create_task(read(number)) for number in range(32)]
        await first_piece.wait()
        for number in range(3, 32, 4):
            tasks[number].cancel()  # or its task is cancelled
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=120)
    for number in range(0, 32, 2):
        assert results[number] == alone[number]
    for number in range(1, 32, 4):
        assert alone[number].startswith(results[number])
        await asyncio.to_thread(wait_until_idle, engine)
    assert engine.generate(texts[0], max_new_tokens=24)[0].text == alone[0]


def rows_of(model: Any) -> tuple[list[int], Any]:
    """The numbers of rows of a model's forward passes from now on, and the handle that ends the recording."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return rows, handle


def test_requests_of_all_kinds_share_the_steps(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT, max_batch_size=16)
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (prompts(8), {"max_new_tokens": 9}),
        (prompts(2), {"max_new_tokens": 9, "stop": "e"}),
        (prompts(2), {"max_new_tokens": 9, "temperature": 0.9, "seed": 1}),
        (["short", "also short"], {"max_new_tokens": 9}),  # nothing to drop
        (prompts(2), {"max_new_tokens": 9, "repetition_penalty": 1.2}),
    ]
    alone = [engine.generate(text, **options)[0].token_ids for texts, options in kinds for text in texts]
    rows, handle = rows_of(attention_view(pair[0].model))
    streams = [stream for texts, options in kinds for stream in engine.submit(texts, **options)]
    results = [stream.result() for stream in streams]
    handle.remove()
    assert [result.token_ids for result in results] == alone
    assert max(rows) > 12  # two may have ended before the last ones join
    assert len(rows) < 40  # 16 requests of up to 9 tokens in fewer passes than the half of one after the other
    assert all(result.timings["queued"] >= 0 for result in results)


def test_a_row_that_ends_is_replaced_at_once(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT, max_batch_size=2)
    texts, lengths = prompts(4), [90, 23, 25, 24]  # none is short beside another
    alone = [engine.generate(text, max_new_tokens=n)[0].token_ids for text, n in zip(texts, lengths, strict=True)]
    widths: list[tuple[int, int]] = []
    handle = attention_view(pair[0].model).register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    streams = [engine.submit(text, max_new_tokens=n)[0] for text, n in zip(texts, lengths, strict=True)]
    ended: list[int] = []
    for index, stream in enumerate(streams):
        put = stream.put
        stream.put = lambda item, put=put, index=index: (  # type: ignore[method-assign]
            None if isinstance(item, int) else ended.append(index), put(item))[1]  # fmt: skip
    assert [stream.result().token_ids for stream in streams] == alone
    handle.remove()
    assert ended == [1, 2, 3, 0]  # the others one after the other beside the longest
    steps = [rows for rows, tokens in widths if tokens == 1]
    assert len(steps) == 90
    assert steps.count(2) == 23 + 25 + 24


def test_a_short_request_does_not_wait_for_long_ones(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT, max_batch_size=2)
    texts = prompts(2)
    alone = [engine.generate(text, max_new_tokens=60)[0].token_ids for text in texts]
    short = engine.generate("Bread is baked.", max_new_tokens=6)[0].token_ids
    longs = [engine.submit(text, max_new_tokens=60)[0] for text in texts]
    pieces = [long.pieces() for long in longs]
    for piece in pieces:
        next(piece)  # both rows are taken
    view = attention_view(pair[0].model)
    rows, handle = rows_of(view)
    results = [engine.submit("Bread is baked.", max_new_tokens=6)[0].result() for _ in range(3)]
    # The first two come between, one for each long answer; each of these makes place once, so the third waits.
    assert [result.token_ids for result in results] == [short] * 3
    assert len(rows) > 30
    assert max(rows) == 2
    for piece in pieces:
        list(piece)
    assert [long.generation.token_ids for long in longs if long.generation is not None] == alone
    handle.remove()


@pytest.mark.parametrize(
    "settings", [{}, {"head_budgets": "adaptive"}, {"kv_quantization": "int8"}], ids=["uniform", "adaptive", "int8"]
)
def test_prompts_that_fit_and_prompts_that_do_not_share_steps(
    pair: tuple[LoadedModel, LoadedModel], settings: dict[str, Any]
) -> None:
    engine = SpecKV(*pair, replace(TIGHT, **settings))
    texts = ["short", LONG, "also short", LONG[60:]]
    alone = [engine.generate(text, max_new_tokens=30)[0].token_ids for text in texts]
    rows, handle = rows_of(attention_view(pair[0].model))
    streams = [engine.submit(text, max_new_tokens=30)[0] for text in texts]
    assert [stream.result().token_ids for stream in streams] == alone
    handle.remove()
    assert max(rows) == 4


def test_company_does_not_change_an_answer(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT)
    texts = [*prompts(5), "short", "quite short"]
    options = [{"max_new_tokens": 4 + number, "stop": "a" if number % 2 else ()} for number in range(7)]
    alone = [engine.generate(text, **option)[0] for text, option in zip(texts, options, strict=True)]
    streams = [engine.submit(text, **option)[0] for text, option in zip(texts, options, strict=True)]
    for expected, stream in zip(alone, streams, strict=True):
        found = stream.result()
        assert (found.token_ids, found.text, found.finish_reason, found.usage) == (
            expected.token_ids, expected.text, expected.finish_reason, expected.usage,
        )  # fmt: skip


def order_of(pair: Any, calls: Any, max_batch_size: int = 1) -> Any:
    """The order in which the prompts of several calls are prefilled; each call is a list of prompt lengths."""
    target = pair[0]
    engine = SpecKV(
        target, None, SpecKVConfig(max_capacity_prompt=4000, lookahead_tokens=0), max_batch_size=max_batch_size
    )
    order: list[int] = []
    started, all_queued = threading.Event(), threading.Event()

    def record(module: Any, args: Any, kwargs: Any) -> None:
        started.set()
        assert all_queued.wait(60)
        order.extend(kwargs["input_ids"][:, -1].tolist())

    handle = target.model.register_forward_pre_hook(record, with_kwargs=True)
    streams = engine.submit([[500]], max_new_tokens=1)
    assert started.wait(60)
    for number, lengths in enumerate(calls):
        streams += engine.submit([[100 * number + i] * n for i, n in enumerate(lengths)], max_new_tokens=1)
    all_queued.set()
    for stream in streams:
        stream.result()
    handle.remove()
    assert order[0] == 500
    return order[1:]


def test_calls_take_turns(pair: tuple[LoadedModel, LoadedModel]) -> None:
    assert order_of(pair, [[5] * 4, [5], [5] * 2]) == [0, 100, 200, 1, 201, 2, 3]
    # prefills reach over calls, but not over lengths too different to share one without much padding
    assert order_of(pair, [[5, 500], [5], [500]], max_batch_size=8) == [0, 100, 200, 1]


def test_a_failure_of_the_thread_reaches_every_reader(
    pair: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SpecKV(*pair, TIGHT)

    def broken(*_: Any) -> None:
        raise ValueError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_take_group", broken)
        with pytest.raises(ValueError, match="out of order"):
            engine.generate("here", max_new_tokens=3)
        for stream in engine.submit(prompts(3), max_new_tokens=3):
            with pytest.raises(ValueError, match="out of order"):
                stream.result()
    assert len(engine.generate("again", max_new_tokens=3)[0].token_ids) == 3


async def test_a_cancelled_request_that_still_waits_is_never_run(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT)
    first, *waiting = await engine.asubmit(prompts(9), max_new_tokens=20, temperature=0.5, seed=3)
    for stream in waiting:
        stream.cancel()
    steps = []
    handle = attention_view(pair[0].model).register_forward_pre_hook(lambda *_: steps.append(1))
    assert len((await first.result()).token_ids) == 20
    await asyncio.to_thread(wait_until_idle, engine)
    handle.remove()
    assert len(steps) == 1 + 20  # the prefill and the steps


@pytest.mark.parametrize("stage", ["lookahead", "prefill"])
def test_cancelling_before_the_first_token(pair: tuple[LoadedModel, LoadedModel], stage: str) -> None:
    engine = SpecKV(*pair, SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=500))
    (stream,) = engine.submit(LONG, max_new_tokens=2)
    draft_steps, target_layers = [], []
    layer = pair[0].model.model.layers[0] if stage == "lookahead" else None

    def cancel_in_lookahead(*_: Any) -> None:
        draft_steps.append(1)
        if stage == "lookahead" and len(draft_steps) == 3:
            stream.cancel()

    handles = [attention_view(pair[1].model).register_forward_pre_hook(cancel_in_lookahead)]
    if stage == "prefill":
        view = attention_view(pair[0].model)
        handles.append(view.model.layers[1].register_forward_pre_hook(lambda *_: stream.cancel()))
        handles.append(view.model.layers[2].register_forward_pre_hook(lambda *_: target_layers.append(1)))
    found = stream.result()
    for handle in handles:
        handle.remove()
    assert found.finish_reason == "cancelled"
    assert len(draft_steps) < 10 or stage == "prefill"
    assert not target_layers
    assert layer is None or engine.generate(LONG, max_new_tokens=2)


def test_a_timeout_ends_the_generation(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT)
    for generate in (
        lambda **kw: list(engine.stream(LONG, **kw)),
        lambda **kw: asyncio.run(engine.agenerate(LONG, **kw)),
    ):
        timed_out, steps = threading.Event(), list[int]()

        def pause(timed_out: Any = timed_out, steps: Any = steps) -> None:
            steps.append(1)
            assert timed_out.wait(60)

        with on_forward(attention_view(pair[0].model), pause):
            with pytest.raises(GenerationTimeoutError, match=r"longer than 0.05 s.*Raise timeout"):
                generate(max_new_tokens=3000, timeout=0.05)
            timed_out.set()
            wait_until_idle(engine)
        assert len(steps) <= 1
    with pytest.raises(InvalidInputError, match="timeout must be more than 0"):
        engine.submit(LONG, timeout=0)
    assert list(engine.stream(LONG, max_new_tokens=2, timeout=60))


def test_an_error_reaches_the_request_it_belongs_to(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, draft = pair
    engine = SpecKV(target, draft, TIGHT)
    texts = prompts(4)
    expected = [engine.generate(text, max_new_tokens=6)[0].token_ids for text in texts]

    def too_much(module: Any, args: Any, kwargs: Any) -> None:  # as running out of memory would: only in company
        if kwargs["input_ids"].shape[0] > 1:
            raise RuntimeError("out of memory")

    handle = attention_view(target.model).register_forward_pre_hook(too_much, with_kwargs=True)
    streams = engine.submit(texts, max_new_tokens=6)
    assert [stream.result().token_ids for stream in streams] == expected  # each again by itself
    handle.remove()

    def broken(module: Any, args: Any, kwargs: Any) -> None:
        raise RuntimeError("out of order")

    handle = draft.model.register_forward_pre_hook(broken, with_kwargs=True)
    for stream in engine.submit(texts, max_new_tokens=6):
        with pytest.raises(RuntimeError, match="out of order"):
            stream.result()
    handle.remove()
    assert [stream.result().token_ids for stream in engine.submit(texts, max_new_tokens=6)] == expected


def test_a_row_whose_logits_are_nan_fails_alone(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, _ = pair
    engine = SpecKV(*pair, SpecKVConfig(max_capacity_prompt=4000))
    texts = ["Bread is baked.", "Bridges are red.", "Mills are old."]
    expected = engine.generate(texts, max_new_tokens=8)
    steps = []

    def poison(module: Any, args: Any, output: Any) -> None:
        steps.append(1)
        if len(steps) == 4:
            output.logits[1] = torch.nan

    handle = attention_view(target.model).register_forward_hook(poison)
    streams = engine.submit(texts, max_new_tokens=8)
    assert streams[0].result().token_ids == expected[0].token_ids
    with pytest.raises(ScoringError, match="logits are NaN"):
        streams[1].result()
    assert streams[2].result().token_ids == expected[2].token_ids
    handle.remove()


def test_closing_ends_what_runs_and_frees_the_memory(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    target, draft = tiny_llama(eos_token_id=None), tiny_llama()
    target.generation_config.eos_token_id = None
    gone = [weakref.ref(target), weakref.ref(target.lm_head.weight), weakref.ref(draft)]
    engine = SpecKV((target, tiny_tokenizer), (draft, tiny_tokenizer), TIGHT)
    running, waiting = engine.submit(LONG, max_new_tokens=3000) + engine.submit(LONG, max_new_tokens=5, seed=1)
    pieces = running.pieces()
    next(pieces)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(pieces)
    with pytest.raises(EngineClosedError):
        waiting.result()
    for call in (lambda: engine.generate("x"), lambda: list(engine.stream("x")), lambda: engine.target):
        with pytest.raises(EngineClosedError, match="make a new one"):
            call()
    engine.close()
    assert repr(engine) == "SpecKV(closed)"
    del target, draft, running, waiting, pieces
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_an_engine_that_nobody_holds_goes_by_itself(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    target = tiny_llama()
    gone = weakref.ref(target)
    engine = SpecKV((target, tiny_tokenizer), "self", TIGHT)
    list(engine.stream(LONG, max_new_tokens=3))
    wait_until_idle(engine)
    for thread in threading.enumerate():  # idle a moment before its last frame is gone
        if thread.name == "speckv-scheduler":
            thread.join(60)
    del target, engine, thread
    gc.collect()
    assert gone() is None


def test_the_target_drafts_for_itself(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, _ = pair
    config = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
    engine = SpecKV(target, "self", config)
    found = engine.generate([LONG, LONG[50:]], max_new_tokens=8)
    # at most 256 tokens are read whole: equal to the target as its own draft
    assert [g.token_ids for g in found] == [
        SpecKV(target, target, config).generate(text, max_new_tokens=8)[0].token_ids for text in (LONG, LONG[50:])
    ]
    seen: list[int] = []
    handle = target.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (answered,) = engine.generate(LONG * 10, max_new_tokens=3)
    handle.remove()
    assert len(answered.lookahead_ids) == 6
    tokens = len(target.tokenizer(LONG * 10)["input_ids"])
    assert seen[0] == tokens // 4  # it drafted from a quarter of the prompt


@pytest.mark.parametrize("name", ["specpc", "speckvpc"])
def test_a_shorter_prompt_for_the_target(pair: tuple[LoadedModel, LoadedModel], name: str) -> None:
    target, draft = pair
    specpc = SpecPCConfig(max_capacity_prompt=80, window_size=16)
    config = specpc if name == "specpc" else SpecKVPCConfig(specpc_config=specpc, speckv_config=TIGHT)
    engine = SpecKV(target, draft, config)
    texts = [LONG, LONG[60:], LONG[:90]]
    together = engine.generate(texts, max_new_tokens=8)
    for text, found in zip(texts, together, strict=True):
        (alone,) = engine.generate(text, max_new_tokens=8)
        assert alone.token_ids == found.token_ids
        tokens = len(target.tokenizer(text)["input_ids"])
        assert found.usage.prompt_tokens == tokens
        assert found.usage.kept_prompt_tokens == min(tokens, 80)
        assert found.usage.kept_kv == min(tokens, 80 if name == "specpc" else 24)
    ids = target.tokenizer(LONG)["input_ids"]
    protected = [False] * len(ids)
    protected[5:30] = [True] * 25
    (stream,) = engine.submit([ids], protected=[protected], max_new_tokens=1)
    assert stream.result().usage.kept_prompt_tokens == 80
    # a prompt beyond the target's window is fine once SpecPC has cut it; the draft must be able to read it
    long = SpecKV(tiny_pair_with_window(target, 128), draft, config)
    assert long.generate(LONG * 2, max_new_tokens=3)[0].usage.kept_prompt_tokens == 80
    with pytest.raises(InvalidInputError, match="different vocabularies.*SpecPC.compress"):
        SpecKV(load_model((tiny_llama(vocab_size=600), None)), draft, config)
    with pytest.raises(InvalidInputError, match="needs a draft"):
        SpecKV(target, None, config)


def tiny_pair_with_window(target: Any, window: Any) -> Any:
    return load_model((tiny_llama(max_position_embeddings=window), target.tokenizer))


def test_bad_batch_sizes(pair: tuple[LoadedModel, LoadedModel]) -> None:
    with pytest.raises(ValueError, match="max_batch_size must be an integer >= 1; got 0"):
        SpecKV(*pair, TIGHT, max_batch_size=0)


@pytest.mark.thorough
def test_threads_get_what_they_would_get_one_after_the_other(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT, max_batch_size=8)
    texts = [*prompts(6), "short", "also short"]
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 3}, {"stop": "e"}, {"repetition_penalty": 1.3}]
    calls = [(text, {"max_new_tokens": 2 + 3 * i, **kind}) for i, text in enumerate(texts) for kind in kinds]
    expected = [engine.generate(text, **options)[0] for text, options in calls]
    wrong: list[int] = []

    def ask(thread: int) -> None:
        for number in range(25):
            index = (7 * number + 11 * thread) % len(calls)
            text, options = calls[index]
            found = engine.generate(text, **options)[0]
            if (found.token_ids, found.text, found.usage) != (
                expected[index].token_ids, expected[index].text, expected[index].usage,
            ):  # fmt: skip
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
