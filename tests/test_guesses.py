"""A guess that a retrieval part leaves with the draft is taken for the very prompt it belongs to, and for no other."""

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from draftapprox_integrations import SpecKV, SpecKVConfig, SpecPC, SpecPCConfig, load_model
from draftapprox_integrations.attention import attention_view
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.guesses import Guesses
from draftapprox_integrations.langchain import ChatSpecKV, SpecPCCompressor, rag_chain
from draftapprox_integrations.llama_index import SpecKVLLM, SpecPCPostprocessor, rag_query_engine

from .conftest import tiny_llama

PASSAGES = [
    "The old mill was built in 1821. Today it is a small museum. It closes in winter. " * 3,
    "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning. " * 3,
]
QUESTION = "In which year was the bridge opened?"


def test_only_the_prompt_it_belongs_to():
    guesses = Guesses()
    assert not guesses
    guesses.leave(" When? ", ["one\n", "", " two"], [1, 2], "then")
    assert guesses.find("one and two. Question: When?\nAnswer:").ids == (1, 2)
    assert guesses.find("two, one. When?")
    for other in (
        "one and two. Why?",
        "one. When?",
        "When? one and two.",  # the question is not what is asked now, or stands before the passages
        "one and two. When? In 1932. And the question after that, which is another one altogether?",
        "",
    ):
        assert guesses.find(other) is None
    guesses.leave("When?", ["one"], [3], "later")
    assert guesses.find("one and two. When?").ids == (3,)  # the newest
    guesses.leave("Never", [], [4], "")
    assert guesses.find("Never") is None
    for number in range(100):
        guesses.leave("Q", [str(number)], [number], "")
    assert guesses.find("one and two. When?") is None
    assert len(guesses._held) == 64


class Counter:
    """Counts the tokens that go through a draft: through the model itself and through its view."""

    def __init__(self, loaded):
        self.tokens = 0
        modules = (loaded.model, attention_view(loaded.model))
        self._handles = [m.register_forward_pre_hook(self._note, with_kwargs=True) for m in modules]

    def _note(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()

    def taken(self):
        tokens, self.tokens = self.tokens, 0
        return tokens

    def close(self):
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def pair(tiny_tokenizer):
    target, draft = tiny_llama(eos_token_id=None), tiny_llama(num_hidden_layers=2, eos_token_id=None)
    for model in (target, draft):
        model.generation_config.eos_token_id = None
    return load_model((target, tiny_tokenizer)), load_model((draft, tiny_tokenizer))


@pytest.fixture
def counter(pair):
    counter = Counter(pair[1])
    yield counter
    counter.close()


KV = SpecKVConfig(max_capacity_prompt=32, window_size=8)


class Found(BaseRetriever):
    texts: list[str] = PASSAGES

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(text) for text in self.texts]


class FoundNodes(LlamaIndexRetriever):
    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(text=text), score=1.0) for text in PASSAGES]


def one_reading(pair, counter, guess, passages=PASSAGES, max_tokens=80):
    """What the draft processes when it reads the passages once and writes `guess` tokens."""
    SpecPC(pair[1]).compress(passages, QUESTION, max_tokens=max_tokens, lookahead_tokens=guess)
    pair[1].guesses._held.clear()
    return counter.taken()


def test_a_langchain_chain_reads_with_the_draft_once(pair, counter):
    expected = one_reading(pair, counter, 12)
    settings = SpecPCConfig(max_capacity_prompt=80)
    chat = ChatSpecKV(pair[0], draft=pair[1], config=KV, max_tokens=12)
    rag_chain(Found(), chat, SpecPCCompressor(pair[1], config=settings, lookahead_tokens=12)).invoke(QUESTION)
    assert counter.taken() == expected
    rag_chain(Found(), chat, SpecPCCompressor(pair[1], config=settings)).invoke("In which year was the mill built?")
    assert counter.taken() > expected + 80  # the second pass: the compressed prompt again, and the guess
    many = [f"{number}. {text}" for number in range(6) for text in PASSAGES]  # more than the default budget
    expected = one_reading(pair, counter, 12, many, max_tokens=None)
    rag_chain(Found(texts=many), chat).invoke(QUESTION)  # the default compressor does it by itself
    assert counter.taken() == expected > 1024


def test_a_llama_index_chain_reads_with_the_draft_once(pair, counter):
    expected = one_reading(pair, counter, 12)
    llm = SpecKVLLM(pair[0], draft=pair[1], config=KV, max_new_tokens=12)
    parts = {guess: SpecPCPostprocessor(pair[1], max_tokens=80, lookahead_tokens=guess) for guess in (12, 0)}
    rag_query_engine(FoundNodes(), llm, parts[12]).query(QUESTION)
    assert counter.taken() == expected
    rag_query_engine(FoundNodes(), llm, parts[0]).query("In which year was the mill built?")
    assert counter.taken() > expected + 80
    assert rag_query_engine(FoundNodes(), llm)._node_postprocessors[0].lookahead_tokens == 12


def test_what_was_left_is_what_is_used(pair):
    target, draft = pair
    result = SpecPC(draft).compress(PASSAGES, QUESTION, max_tokens=80, lookahead_tokens=12)
    plain = SpecPC(draft).compress(PASSAGES, QUESTION, max_tokens=80)
    assert [p.kept for p in result.passages] == [p.kept for p in plain.passages]
    assert [p.score for p in result.passages] == [p.score for p in plain.passages]
    (left,) = draft.guesses._held
    prompt = "\n".join(p.text for p in result.passages) + "\n" + QUESTION
    engine = SpecKV(target, draft, KV)
    assert engine.generate(prompt, max_new_tokens=12)[0].lookahead_ids == list(left.ids)
    assert engine.generate(prompt, max_new_tokens=5)[0].lookahead_ids == list(left.ids[:5])
    other = engine.generate([prompt, prompt.replace("bridge", "tower")], max_new_tokens=12)
    assert other[0].lookahead_ids == list(left.ids)
    assert other[1].lookahead_ids != list(left.ids)
    # in another vocabulary it goes over as text
    foreign = SpecKV(load_model((tiny_llama(vocab_size=600), target.tokenizer)), draft, KV)
    assert foreign.generate(prompt, max_new_tokens=12)[0].lookahead_ids[:3]


def test_the_guess_is_what_the_draft_would_write(pair):
    draft = pair[1]
    pc = SpecPC(draft)
    pc.compress(PASSAGES, QUESTION, max_tokens=80, lookahead_tokens=9)
    encoded = pc._builder.reader.encode(PASSAGES)
    (prompt,) = pc._builder.build(encoded, pc._builder.headers([None] * 2), QUESTION)
    written = draft.model.generate(torch.tensor([prompt.ids]), max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert list(draft.guesses._held[0].ids) == written[0, len(prompt.ids) :].tolist()


def test_no_guess_where_none_can_be(pair):
    draft = pair[1]
    SpecPC(draft).compress(PASSAGES, QUESTION, max_tokens=5000, lookahead_tokens=8)  # fits: the draft does not read
    SpecPC(draft).compress([PASSAGES[0] * 40] * 2, QUESTION, max_tokens=80, lookahead_tokens=8)  # several readings
    assert not draft.guesses
    for wrong in (-1, True, 1.5):
        with pytest.raises(InvalidInputError, match="lookahead_tokens must be an integer >= 0"):
            SpecPC(draft).compress(PASSAGES, QUESTION, lookahead_tokens=wrong)
