"""SpecKV.generate and stream: equal to model.generate where nothing is dropped, and sane everywhere else."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig
from draftapprox_integrations.engine.answer_text import AnswerText
from draftapprox_integrations.errors import InvalidInputError, ScoringError
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.lookahead import same_vocabulary
from tests.conftest import tiny_llama
from tests.helpers.serving import wait_until_idle

ROOMY = SpecKVConfig(max_capacity_prompt=4000)
TIGHT = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. Today it is a small museum. " * 3
PROMPTS = [LONG, "The bridge was opened in 1932. It is red.", "Bread is baked at five, and the bakery closes at noon."]


def plain(target: Any, prompts: Any, **options: Any) -> Any:
    """model.generate on a left-padded batch; the new ids."""
    rows = [target.tokenizer(text)["input_ids"] for text in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    out = target.model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return out[:, longest:].tolist()


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_greedy_equals_generate_when_nothing_is_dropped(pair: tuple[LoadedModel, LoadedModel], prompts: Any) -> None:
    found = SpecKV(*pair, ROOMY).generate(prompts, max_new_tokens=20)
    assert [g.token_ids for g in found] == plain(pair[0], prompts, max_new_tokens=20, do_sample=False)
    assert [g.text for g in found] == pair[0].tokenizer.batch_decode([g.token_ids for g in found])
    assert all(g.finish_reason == "length" and g.lookahead_ids == [] for g in found)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_seeded_sampling_equals_generate_and_leaves_the_generator_alone(
    pair: tuple[LoadedModel, LoadedModel], prompts: Any
) -> None:
    torch.manual_seed(99)
    expected_next = torch.rand(3)
    torch.manual_seed(99)
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
    found = SpecKV(*pair, ROOMY).generate(prompts, max_new_tokens=20, seed=7, **options)
    assert torch.equal(torch.rand(3), expected_next)
    for prompt, generation in zip(prompts, found, strict=True):  # company does not change what a seed gives
        torch.manual_seed(7)
        assert [generation.token_ids] == plain(pair[0], [prompt], max_new_tokens=20, do_sample=True, **options)


def test_repetition_penalty_covers_the_whole_prompt(pair: tuple[LoadedModel, LoadedModel]) -> None:
    options: dict[str, Any] = {"repetition_penalty": 1.7}
    found = SpecKV(*pair, ROOMY).generate(LONG, max_new_tokens=20, **options)
    assert found[0].token_ids == plain(pair[0], [LONG], max_new_tokens=20, do_sample=False, **options)[0]
    # with pairs dropped too: a processor sees every prompt token, dropped or not
    seen = []

    def spy(input_ids: Any, scores: Any) -> Any:
        seen.append(input_ids.shape[1])
        return scores

    prompt = pair[0].tokenizer(LONG)["input_ids"]
    SpecKV(*pair, TIGHT).generate(prompt, max_new_tokens=3, logits_processor=[spy])
    assert seen == [len(prompt), len(prompt) + 1, len(prompt) + 2]


def test_usage_and_timings_when_pairs_are_dropped(pair: tuple[LoadedModel, LoadedModel]) -> None:
    (found,) = SpecKV(*pair, TIGHT).generate(LONG, max_new_tokens=9)
    assert found.usage.prompt_tokens == len(pair[0].tokenizer(LONG)["input_ids"])
    assert (found.usage.completion_tokens, found.usage.kept_kv) == (9, 24)
    assert len(found.lookahead_ids) == 6
    assert set(found.timings) == {"queued", "lookahead", "prefill", "decode", "total"}
    short, *_ = SpecKV(*pair, TIGHT).generate("Hello there")
    assert short.usage.kept_kv == short.usage.prompt_tokens


def test_a_row_of_a_batch_writes_what_it_writes_alone(pair: tuple[LoadedModel, LoadedModel]) -> None:
    prompts = [LONG, LONG[40:], LONG[100:]]
    engine = SpecKV(*pair, TIGHT)
    together = engine.generate(prompts, max_new_tokens=12)
    assert [g.token_ids for g in together] == [engine.generate(p, max_new_tokens=12)[0].token_ids for p in prompts]


def test_snapkv_is_speckv_without_lookahead(pair: tuple[LoadedModel, LoadedModel]) -> None:
    snap = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=0)
    without = SpecKV(pair[0], None, snap).generate(LONG, max_new_tokens=12)[0]
    assert without.lookahead_ids == []
    assert without.token_ids == SpecKV(*pair, snap).generate(LONG, max_new_tokens=12)[0].token_ids
    with pytest.raises(InvalidInputError, match="needs a draft model"):
        SpecKV(pair[0])


def test_the_draft_runs_only_when_something_must_go(pair: tuple[LoadedModel, LoadedModel]) -> None:
    calls: list[int] = []  # the model itself reads the prompt, its view writes
    models = (pair[1].model, attention_view(pair[1].model))
    handles = [model.register_forward_pre_hook(lambda *_: calls.append(1)) for model in models]
    SpecKV(*pair, ROOMY).generate(LONG, max_new_tokens=3)
    assert not calls
    SpecKV(*pair, TIGHT).generate(LONG, max_new_tokens=3)
    for handle in handles:
        handle.remove()
    assert len(calls) == 6


def test_eos_and_length_are_told_apart(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, draft = pair
    free = SpecKV(*pair, TIGHT).generate(LONG, max_new_tokens=8)[0]
    end = free.token_ids[4]
    first = free.token_ids.index(end)
    try:
        target.model.generation_config.eos_token_id = [end]
        found = SpecKV(target, draft, TIGHT).generate([LONG, LONG[40:]], max_new_tokens=8)
    finally:
        target.model.generation_config.eos_token_id = None
    assert found[0].token_ids == free.token_ids[: first + 1]
    assert found[0].finish_reason == "stop"
    assert found[0].usage.completion_tokens == first + 1


def test_draft_and_target_may_be_one_and_a_draft_may_end_at_once(pair: tuple[LoadedModel, LoadedModel]) -> None:
    target, _ = pair
    found = SpecKV(target, target, TIGHT).generate(LONG, max_new_tokens=6)[0]
    assert len(found.lookahead_ids) == 6
    draft = tiny_llama()
    first = draft.generate(torch.tensor([target.tokenizer(LONG)["input_ids"]]), max_new_tokens=1, pad_token_id=0)[0, -1]
    draft.generation_config.eos_token_id = int(first)
    found = SpecKV(target, (draft, target.tokenizer), TIGHT).generate(LONG, max_new_tokens=6)[0]
    assert found.lookahead_ids == [int(first)]
    assert len(found.token_ids) == 6


def test_another_vocabulary(pair: tuple[LoadedModel, LoadedModel], embedded_model: LoadedModel) -> None:
    target = pair[0]
    engine = SpecKV(target, embedded_model, SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=5))
    assert not same_vocabulary(engine.target, engine.draft)
    (found,) = engine.generate(LONG, max_new_tokens=4)
    drafted = target.tokenizer.decode(found.lookahead_ids)
    assert drafted  # what SmolLM2 wrote, spelled in the target's tokens
    assert target.tokenizer(drafted, add_special_tokens=False)["input_ids"] == found.lookahead_ids
    with pytest.raises(InvalidInputError, match="has no tokenizer"):
        SpecKV(tiny_llama(), embedded_model)


@pytest.mark.parametrize("config", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_stop_strings_even_across_tokens(pair: tuple[LoadedModel, LoadedModel], config: Any) -> None:
    engine = SpecKV(*pair, config)
    full = engine.generate(LONG, max_new_tokens=30)[0].text
    stop = full[7:12]  # starts and ends within tokens as often as not
    (found,) = engine.generate(LONG, max_new_tokens=30, stop=[stop, "never written"])
    assert found.text == full[: full.index(stop)]
    assert found.finish_reason == "stop"
    assert stop in pair[0].tokenizer.decode(found.token_ids)
    assert stop not in pair[0].tokenizer.decode(found.token_ids[:-1])
    batch = engine.generate([LONG, LONG], max_new_tokens=30, stop=stop)
    assert [g.text for g in batch] == [found.text] * 2


@pytest.mark.parametrize("stop", [(), "mid"])
@pytest.mark.parametrize("config", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_a_stream_joins_to_the_text(pair: tuple[LoadedModel, LoadedModel], config: Any, stop: Any) -> None:
    engine = SpecKV(*pair, config)
    if stop:
        full = engine.generate(LONG, max_new_tokens=30)[0].text
        stop = [full[9:14]]
    pieces = list(engine.stream(LONG, max_new_tokens=30, stop=stop))
    assert "".join(pieces) == engine.generate(LONG, max_new_tokens=30, stop=stop)[0].text
    assert len(pieces) > 3 or stop


def test_a_stream_that_is_closed_stops_the_model(pair: tuple[LoadedModel, LoadedModel]) -> None:
    engine = SpecKV(*pair, TIGHT)
    steps, closed = [], threading.Event()

    def pause_until_closed(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 100:
            assert closed.wait(60)

    handle = pair[0].model.register_forward_pre_hook(pause_until_closed)
    stream: Any = engine.stream(LONG, max_new_tokens=2000)  # a generator
    next(stream)
    stream.close()
    closed.set()
    wait_until_idle(engine)
    handle.remove()
    assert len(steps) < 200
    assert engine.generate(LONG, max_new_tokens=2)  # and it serves on


def test_errors_reach_the_reader_of_a_stream(
    pair: tuple[LoadedModel, LoadedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    broken = tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight[:] = torch.nan
    engine = SpecKV((broken, tiny_tokenizer), pair[1], ROOMY)
    with pytest.raises(ScoringError, match="logits are NaN"):
        list(engine.stream("Hello", max_new_tokens=3))
    with pytest.raises(ScoringError, match="logits are NaN"):
        engine.generate("Hello", max_new_tokens=3)
    with pytest.raises(InvalidInputError, match="max_new_tokens"):
        list(SpecKV(*pair, TIGHT).stream(LONG, max_new_tokens=-1))


class Spelling(PreTrainedTokenizerFast):
    """Joins pieces of text as tokens, so that a property test can split stop strings anywhere."""

    added_tokens_decoder: Any = property(lambda _: {})
    all_special_tokens: Any = ()

    def __init__(self, pieces: Any) -> None:
        self.pieces = pieces

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
        return "".join(self.pieces[i] for i in token_ids)

    def convert_ids_to_tokens(self, ids: Any, *_: Any, **__: Any) -> Any:
        return self.pieces[ids]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=2),
)
def test_streaming_never_sends_what_generate_would_not(pieces: Any, stops: Any) -> None:
    whole = "".join(pieces)
    cut = whole[: min([whole.find(stop) for stop in stops if stop in whole], default=len(whole))]
    answer = AnswerText(Spelling(pieces), tuple(stops))
    sent = ""
    for index in range(len(pieces)):
        sent += answer.feed(index)
        assert cut.startswith(sent)
        found = answer.stop_position()
        assert (whole if found is None else whole[:found]) == cut or index < len(pieces) - 1
    assert sent + answer.flush(cut) == cut


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "none is empty"),
        ([[1, 2], []], {}, "prompt is empty"),
        ([1, 512], {}, r"must be in \[0, 512\)"),
        (3, {}, "prompts must be"),
        ("a", {"max_new_tokens": -1}, "max_new_tokens must be an integer >= 0; got -1"),
        ("a", {"temperature": -0.1}, "temperature must be >= 0; got -0.1"),
        ("a", {"top_p": 0}, r"top_p must be in \(0, 1\]; got 0"),
        ("a", {"top_k": 0}, "top_k must be an integer >= 1; got 0"),
        ("a", {"stop": [""]}, "stop must be non-empty strings"),
        ("a", {"assistant_model": 1, "num_beams": 4}, "assistant_model, num_beams cannot be used"),
        ("word " * 5000, {}, "has .* tokens.*reads at most 4096.*Shorten"),
    ],
)
def test_bad_input_is_refused_and_the_engine_serves_on(
    pair: tuple[LoadedModel, LoadedModel], prompt: Any, options: Any, message: str
) -> None:
    engine = SpecKV(*pair, TIGHT)
    with pytest.raises(InvalidInputError, match=message):
        engine.generate(prompt, **options)
    assert engine.generate("Hello", max_new_tokens=2)


def test_nothing_to_write(pair: tuple[LoadedModel, LoadedModel]) -> None:
    (found,) = SpecKV(*pair, TIGHT).generate(LONG, max_new_tokens=0)
    assert (found.text, found.token_ids, found.finish_reason) == ("", [], "length")


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("max_capacity_prompt", 0, ">= 1"),
        ("window_size", 300, "<= max_capacity_prompt (256)"),
        ("kernel_size", 4, "odd"),
        ("pool_type", "avg", "'max', 'mean'"),
        ("reduction_type", None, "'max', 'mean'"),
        ("lookahead_tokens", -1, ">= 0"),
    ],
)
def test_a_bad_setting_names_field_value_and_limit(field: str, value: int | str | None, limit: str) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        SpecKVConfig(**{field: value})
    assert repr(value) in str(caught.value)
    assert limit in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "switch"),
    [
        ({"floor_alpha": 0.5}, "head_budgets='adaptive'"),
        ({"floor_alpha": 1}, "head_budgets='adaptive'"),
        ({"prefill_window_size": 512}, "prefill='sparse'"),
        ({"prefill_vertical_size": 512}, "prefill='sparse'"),
        ({"prefill_window_size": 512, "head_budgets": "adaptive", "floor_alpha": 0.5}, "prefill='sparse'"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(settings: Any, switch: str) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(
        ValueError, match=f"{name} has no effect with .*: set {switch} or leave {name} out; got {value}"
    ):
        SpecKVConfig(**settings)


def test_defaults_and_settings_with_an_effect_pass() -> None:
    defaults = SpecKVConfig(floor_alpha=0.2, prefill_window_size=2048, prefill_vertical_size=2048)
    assert defaults == SpecKVConfig()
    assert SpecKVConfig(head_budgets="adaptive", floor_alpha=1).floor_alpha == 1
    sparse = SpecKVConfig(prefill="sparse", prefill_window_size=512, prefill_vertical_size=256)
    assert (sparse.prefill_window_size, sparse.prefill_vertical_size) == (512, 256)
