"""SpecKV with a draft that writes text: behind an endpoint, a framework's LLM, a function."""

import logging
import pickle
import threading
import time
from typing import Any

import pytest

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecPCConfig, TextDraft
from draftapprox_integrations.errors import GenerationTimeoutError, InvalidInputError
from draftapprox_integrations.langchain import ChatSpecKV
from draftapprox_integrations.langchain import SpecKVLLM as LangChainLLM
from draftapprox_integrations.llama_index import SpecKVLLM as LlamaIndexLLM
from draftapprox_integrations.results import Generation
from tests.helpers.openai_service import NAME, serving_completions

TIGHT = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
SNAPKV = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=0)
WHOLE = SpecKVConfig(max_capacity_prompt=1000, lookahead_tokens=0)
PROMPT = "The old mill stands by the river. It was built in 1821 by Anton Berg. Today it is a small museum. " * 2


def answer(target: LoadedModel, draft: Any, config: Any = TIGHT) -> Generation:
    return SpecKV(target, draft, config).generate(PROMPT, max_new_tokens=12)[0]


def as_text(target: LoadedModel, found: Generation, tokens: int = 6) -> list[int]:
    """A lookahead as it comes back from its text."""
    tokenizer = target.require_tokenizer()
    text = tokenizer.decode(found.lookahead_ids, skip_special_tokens=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])


def test_an_endpoint_drafts_what_its_model_drafts_here(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, draft = pair
    here = answer(target, draft)
    with serving_completions(SpecKV(draft, None, WHOLE)) as url:
        there = answer(target, f"{url}#{NAME}")
        assert there.lookahead_ids == as_text(target, here)
        written = SpecKV(target, TextDraft(lambda *_: target.require_tokenizer().decode(here.lookahead_ids)), TIGHT)
        assert there.token_ids == written.generate(PROMPT, max_new_tokens=12)[0].token_ids
        assert there.usage.kept_kv == here.usage.kept_kv == 24
        short = SpecKV(target, f"{url}#{NAME}", TIGHT)
        assert short.draft_name == f"{url}#{NAME}"
        both = short.generate([PROMPT, PROMPT[7:]], max_new_tokens=12)
        assert both[0].token_ids == there.token_ids


@pytest.mark.parametrize("failure", ["down", "unknown model", "raises", "late"])
def test_a_draft_that_fails_costs_the_lookahead_only(
    failure: str, pair: tuple[LoadedModel, LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    target, draft = pair
    let_go = threading.Event()

    def write(_prompt: str, _tokens: int) -> str:
        if failure == "raises":
            raise RuntimeError("out of memory")
        let_go.wait(60)
        return "late"

    expected = answer(target, None, SNAPKV)
    with caplog.at_level(logging.WARNING), serving_completions(SpecKV(draft, None, SNAPKV)) as url:
        drafts: dict[str, Any] = {"down": "http://127.0.0.1:9/v1#any", "unknown model": f"{url}#other"}
        found = answer(target, drafts.get(failure, TextDraft(write, timeout=0.2)))
    let_go.set()
    assert (found.token_ids, found.lookahead_ids) == (expected.token_ids, [])
    assert "wrote no lookahead" in caplog.text


def test_a_lookahead_is_cut_and_a_call_that_waits_can_be_left(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, _ = pair
    assert len(answer(target, TextDraft(lambda *_: "mill " * 50)).lookahead_ids) == 6
    let_go = threading.Event()
    engine = SpecKV(target, TextDraft(lambda *_: str(let_go.wait(60)), timeout=60), TIGHT)
    begun = time.monotonic()
    with pytest.raises(GenerationTimeoutError):
        engine.generate(PROMPT, max_new_tokens=12, timeout=0.3)
    engine.close()
    let_go.set()
    assert time.monotonic() - begun < 30


def test_llms_of_both_frameworks_draft(embedded_model: LoadedModel) -> None:
    writer = SpecKV(embedded_model, None, SpecKVConfig(max_capacity_prompt=4000, lookahead_tokens=0))
    config = SpecKVConfig(max_capacity_prompt=64, lookahead_tokens=6)
    for llm in (LangChainLLM(writer, max_tokens=6), LlamaIndexLLM(writer, max_tokens=6)):
        found = SpecKV(embedded_model, llm, config).generate(PROMPT * 2, max_new_tokens=4)[0]
        assert 0 < len(found.lookahead_ids) <= 6
        chat = ChatSpecKV("default", draft=llm, config=config, max_tokens=4)
        assert chat.invoke(PROMPT * 3).text
        assert chat.draft_spec == "default"


def test_parts_keep_an_endpoints_address() -> None:
    address = "http://127.0.0.1:9/v1#model"
    chat = ChatSpecKV("default", draft=address, config=TIGHT)
    assert (chat.draft, chat.draft_spec) == (address, "default")
    assert pickle.loads(pickle.dumps(chat)).draft == address


def test_what_cannot_draft_is_refused(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, _ = pair
    with pytest.raises(InvalidInputError, match=r"names its model, as in http://host:8000/v1#model"):
        SpecKV(target, "http://localhost:8000/v1", TIGHT)
    with pytest.raises(InvalidInputError, match="SpecPC reads its draft's attention, and text draft only writes text"):
        SpecKV(target, TextDraft(lambda *_: ""), SpecPCConfig(max_capacity_prompt=30))
    with pytest.raises(InvalidInputError, match="timeout must be seconds"):
        TextDraft(lambda *_: "", timeout=0)
