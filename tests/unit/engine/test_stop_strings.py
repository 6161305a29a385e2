"""Stop strings that are, or contain, control tokens: the text never shows these, and yet they end it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig
from draftapprox_integrations.engine.answer_text import AnswerText

ROOMY = SpecKVConfig(max_capacity_prompt=4000, lookahead_tokens=0)


class Scripted(LogitsProcessor):
    """Makes a model write the given ids, then the end token."""

    def __init__(self, ids: list[int]):
        self.ids, self.start = ids, -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.start < 0:
            self.start = input_ids.shape[1]
        at = input_ids.shape[1] - self.start
        out = torch.full_like(scores, float("-inf"))
        out[:, self.ids[at] if at < len(self.ids) else 1] = 0.0
        return out


def write(target: LoadedModel, script: str, stop: Any) -> tuple[Any, list[str]]:
    engine = SpecKV(target, None, ROOMY)
    ids = target.require_tokenizer()(script, add_special_tokens=False)["input_ids"]
    (whole,) = engine.generate("x", max_new_tokens=60, stop=stop, logits_processor=[Scripted(ids)])
    pieces = list(engine.stream("x", max_new_tokens=60, stop=stop, logits_processor=[Scripted(ids)]))
    return whole, pieces


@pytest.mark.parametrize(
    ("script", "stop", "text"),
    [
        ("One fact.<|user|>Next question", ["<|user|>"], "One fact."),
        ("One fact.<|user|>Next question", "<|user|>Next", "One fact."),
        ("One fact.<|user|>Next question", [" fact.<|user|>"], "One"),
        ("One fact.<|user|><|assistant|>Yes", ["<|user|><|assistant|>"], "One fact."),
        ("<|user|>Next question", ["<|user|>"], ""),
        ("<|user|>Next question", ["xt"], "Ne"),
        ("One<|user|> fact. Two", ["One fact"], ""),  # what a reader sees is searched too
        ("One<|user|> fact.", ["<|user|>Two", "ct."], "One fa"),
        ("One fact<|user|>.", ["<|end|>"], "One fact."),
        ("One fact<|user|>.", ["<|system|>", "<|use", "user"], "One fact."),  # a name counts as a whole
        ("a 🦊<|user|>b", ["🦊<|user|>"], "a "),
        ("One fact.", ["<|user|>"], "One fact."),
    ],
)
def test_a_stop_string_with_control_tokens_ends_the_answer(
    tiny: LoadedModel, script: str, stop: Any, text: str
) -> None:
    whole, pieces = write(tiny, script, stop)
    assert whole.text == text == "".join(pieces)
    assert whole.finish_reason == "stop"


NAMES = ["<|end|>", "<|user|>", "<|assistant|>"]
PART = st.one_of(st.text("ab🦊é.", max_size=4), st.sampled_from(NAMES))


SYMBOLS = "①②③"


def with_symbols(text: str) -> str:
    """One character for each control token."""
    for name, symbol in zip(NAMES, SYMBOLS, strict=True):
        text = text.replace(name, symbol)
    return text


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(PART, max_size=10),
    stops=st.lists(st.lists(PART, min_size=1, max_size=3).map("".join), max_size=2),
)
def test_what_is_shown_is_the_text_before_the_first_stop_string(
    tiny_tokenizer: PreTrainedTokenizerFast, parts: Any, stops: Any
) -> None:
    stops = [stop for stop in stops if stop]
    ids = tiny_tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
    answer, sent = AnswerText(tiny_tokenizer, stops), ""
    for end, token in enumerate(ids, 1):
        sent += answer.feed(token)
        text = tiny_tokenizer.decode(ids[:end], skip_special_tokens=True)
        starts = [text.index(stop) for stop in stops if stop in text]
        spelled = with_symbols(tiny_tokenizer.decode(ids[:end], skip_special_tokens=False))
        for stop in map(with_symbols, stops):
            if stop in spelled:
                before = spelled[: spelled.index(stop)]
                starts.append(len(before) - sum(map(before.count, SYMBOLS)))
        expected = min(starts, default=None)
        assert answer.stop_position() == expected
        cut = text[:expected]
        assert cut.startswith(sent)
        if expected is not None:
            assert sent + answer.flush(cut) == cut
            return
