"""Whose thread runs the steps: the caller's while its call is alone, then one of the scheduler's."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from draftapprox_integrations import SpecKV, SpecKVConfig
from draftapprox_integrations.engine.streams import Stream
from draftapprox_integrations.errors import EngineClosedError, InvalidInputError
from tests.conftest import tiny_llama
from tests.helpers.serving import wait_until_idle

PROMPT = "The old mill stands by the river. It was built in 1821 by Anton Berg. "
OTHER = "The bridge was opened in 1932. "


@pytest.fixture
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> SpecKV:
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    return SpecKV((target, tiny_tokenizer), "self", SpecKVConfig(max_capacity_prompt=24, window_size=8))


class AtToken(LogitsProcessor):
    """Calls `act` before the token of this number, and notes each token's thread."""

    def __init__(self, number: int, act: Callable[[], Any]):
        self.number, self.act = number, act
        self.threads: list[threading.Thread] = []

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self.threads.append(threading.current_thread())
        if len(self.threads) == self.number:
            self.act()
        return scores


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def ids(engine: SpecKV, prompt: str, **options: Any) -> list[int]:
    return engine.generate(prompt, max_new_tokens=12, **options)[0].token_ids


def test_a_call_alone_is_served_by_its_thread_and_with_company_by_another(engine: SpecKV) -> None:
    mine, others = ids(engine, PROMPT), ids(engine, OTHER)
    queued: list[Stream] = []
    clock = AtToken(5, lambda: queued.extend(engine.submit(OTHER, max_new_tokens=12)))
    assert ids(engine, PROMPT, logits_processor=[clock]) == mine
    assert [thread is threading.current_thread() for thread in clock.threads] == [True] * 5 + [False] * 7
    assert queued[0].result().token_ids == others
    wait_until_idle(engine)
    alone = AtToken(0, lambda: None)
    assert ids(engine, PROMPT, logits_processor=[alone]) == mine
    assert set(alone.threads) == {threading.current_thread()}
    patient = AtToken(0, lambda: None)  # no thread can leave a model in the middle of a pass
    assert ids(engine, PROMPT, logits_processor=[patient], timeout=60) == mine
    assert threading.current_thread() not in patient.threads


def test_the_callers_autocast_changes_no_answer(engine: SpecKV) -> None:
    expected = ids(engine, PROMPT)
    seen: list[bool] = []
    with torch.autocast("cpu", torch.bfloat16):
        assert ids(engine, PROMPT, logits_processor=[AtToken(1, lambda: seen.append(torch.is_autocast_enabled("cpu")))])
    assert seen == [False]
    assert ids(engine, PROMPT) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_others_queued_survives_an_interrupted_call(engine: SpecKV, error: type[BaseException]) -> None:
    expected = ids(engine, OTHER)
    queued: list[Stream] = []

    def interrupt() -> None:
        queued.extend(engine.submit(OTHER, max_new_tokens=12))
        raise error

    with pytest.raises(error):
        ids(engine, PROMPT, logits_processor=[AtToken(5, interrupt)])
    assert queued[0].result().token_ids == expected
    wait_until_idle(engine)
    assert ids(engine, OTHER) == expected
    with pytest.raises(error):  # nothing else was queued
        ids(engine, PROMPT, logits_processor=[AtToken(5, raising(error()))])
    assert engine.is_idle
    assert ids(engine, OTHER) == expected


def test_what_fails_with_and_without_company_is_tried_no_further(engine: SpecKV) -> None:
    tries: list[int] = []

    def broken(module: Any, args: Any, kwargs: Any) -> None:
        tries.append(len(kwargs["input_ids"]))
        if len(tries) > 9:
            raise KeyboardInterrupt  # it would go on for ever
        raise RuntimeError("out of order")

    handle = engine.target.model.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(RuntimeError, match="out of order"):
        engine.generate([OTHER, OTHER], max_new_tokens=4)
    assert engine.is_idle
    assert tries == [2, 1, 1]
    for stream in engine.submit([OTHER, OTHER], max_new_tokens=4):
        with pytest.raises(RuntimeError, match="out of order"):
            stream.result()
    wait_until_idle(engine)
    assert tries == [2, 1, 1] * 2
    handle.remove()
    assert ids(engine, OTHER)


def test_an_engine_that_waits_for_itself_says_so(engine: SpecKV) -> None:
    with pytest.raises(InvalidInputError, match="wait for itself"):
        ids(engine, PROMPT, logits_processor=[AtToken(3, lambda: engine.generate(OTHER))])
    assert engine.is_idle
    with pytest.raises(InvalidInputError, match="wait for itself"):
        ids(engine, PROMPT, logits_processor=[AtToken(3, lambda: engine.generate(OTHER))], timeout=60)


def test_closing_ends_a_call_that_serves_itself(engine: SpecKV) -> None:
    closing = threading.Thread(target=engine.close)
    with pytest.raises(EngineClosedError, match="before this answer was finished"):
        engine.generate(PROMPT, max_new_tokens=3000, logits_processor=[AtToken(5, closing.start)])
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(EngineClosedError, match="make a new one"):
        engine.generate(PROMPT)
