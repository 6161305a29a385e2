"""The likelihood of an answer is what generating that answer, token by token, shows."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from draftapprox_integrations import SpecKV, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from draftapprox_integrations.errors import InvalidInputError
from tests.conftest import tiny_llama

PROMPT = "The old mill stands by the river. It was built in 1821 by Anton Berg."
TIGHT = {"max_capacity_prompt": 24, "window_size": 8}
METHODS: dict[str, Any] = {
    "full": SpecKVConfig(max_capacity_prompt=1000, lookahead_tokens=0),
    "speckv": SpecKVConfig(**TIGHT),
    "snapkv": SpecKVConfig(lookahead_tokens=0, **TIGHT),
    "adaptive": SpecKVConfig(head_budgets="adaptive", **TIGHT),
    "int8": SpecKVConfig(kv_quantization="int8", **TIGHT),
    "specpc": SpecPCConfig(**TIGHT),
    "specpc, original": SpecPCConfig(**TIGHT),
    "speckvpc": SpecKVPCConfig(specpc_config={"max_capacity_prompt": 40, "window_size": 8}, speckv_config=TIGHT),
}


class Record(LogitsProcessor):
    """Notes the log-probabilities of every step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self.seen.append(scores[0].float().log_softmax(-1))
        return scores


def engine_of(method: str, tokenizer: PreTrainedTokenizerFast) -> SpecKV:
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    positions: Any = "original" if method.endswith("original") else "renumber"
    return SpecKV((target, tokenizer), "self", METHODS[method], positions=positions)


@pytest.mark.parametrize("method", METHODS)
def test_of_a_greedy_answer(method: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of(method, tiny_tokenizer)
    steps = Record()
    answer = engine.generate(PROMPT, max_new_tokens=9, logits_processor=[steps])[0].token_ids
    ids = tiny_tokenizer(PROMPT)["input_ids"]
    found = engine.log_likelihood(ids, answer, max_new_tokens=9)
    expected = sum(float(step[token]) for step, token in zip(steps.seen, answer, strict=True))
    assert found.total == pytest.approx(expected, abs=1e-3)
    assert found.is_greedy
    assert (found.tokens, found.per_token) == (9, pytest.approx(expected / 9, abs=1e-4))
    other = [*answer[:4], (answer[4] + 1) % 200, *answer[5:]]
    worse = engine.log_likelihood(ids, other, max_new_tokens=9)
    assert not worse.is_greedy
    assert engine.log_likelihood(ids, answer[:1], max_new_tokens=9).total == pytest.approx(
        float(steps.seen[0][answer[0]]), abs=1e-4
    )


def test_texts_and_what_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of("speckv", tiny_tokenizer)
    whole = tiny_tokenizer(PROMPT + " It is red.")["input_ids"]
    cut = len(tiny_tokenizer(PROMPT)["input_ids"])
    assert engine.log_likelihood(PROMPT, " It is red.") == engine.log_likelihood(whole[:cut], whole[cut:])
    nothing = engine.log_likelihood(PROMPT, "")
    assert (nothing.total, nothing.tokens, nothing.per_token, nothing.is_greedy) == (0.0, 0, 0.0, True)
    with pytest.raises(InvalidInputError, match="a prompt is empty"):
        engine.log_likelihood([], [1])
    with pytest.raises(InvalidInputError, match="token ids of .* must be in"):
        engine.log_likelihood([1], [10**6])
    assert torch.is_inference_mode_enabled() is False
