"""Passages and query each read alone: scores equal a plain loop; stored passages are not read again."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, PassageStore, SpecPC, load_model
from draftapprox_integrations.errors import InvalidInputError, ScoringError
from draftapprox_integrations.models.attention import attention_view, observing
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.specpc.scoring import per_passage
from draftapprox_integrations.specpc.scoring.heads import HeadSet
from draftapprox_integrations.specpc.scoring.per_passage import BUCKET, PIECE_TOKENS, CalibratedHeadsScorer
from draftapprox_integrations.specpc.scoring.prompt import PromptBuilder
from draftapprox_integrations.specpc.store.key_codec import Float32KeyCodec
from draftapprox_integrations.specpc.text import Passage
from tests.conftest import DEMO, tiny_llama

HEADS = ((2, 1), (0, 3), (2, 0))
TEXTS = ["The mill was built in 1821.", "A bridge. It is red and long and old.", "Bread is baked at five o'clock."]
TITLES = ["Mill", None, "Bakery"]
QUESTION = "What colour is the bridge?"
PASSAGES = [Passage(text, title) for text, title in zip(TEXTS, TITLES, strict=True)]


def head_set(draft: Any, heads: Any = HEADS) -> Any:
    return HeadSet(draft.name, fingerprint(draft.model), heads)


def scorer_of(draft: Any, store: Any = None, heads: Any = HEADS, codec: Any = None) -> Any:
    return CalibratedHeadsScorer(draft, head_set(draft, heads), store=store, codec=codec)


class Seen:
    """Everything that one forward pass computes, at every layer."""

    def __init__(self) -> None:
        self.query: dict[int, Any] = {}
        self.key: dict[int, Any] = {}
        self.scaling: dict[int, Any] = {}

    def observe(self, layer: Any, query: Any, key: Any, mask: Any, scaling: Any) -> None:
        self.query[layer], self.key[layer], self.scaling[layer] = query[0], key[0], scaling


@torch.no_grad()
def see(draft: Any, ids: Any, positions: Any) -> Any:
    seen = Seen()
    with observing(seen):
        attention_view(draft.model)(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]))
    return seen


def plain_loop(draft: Any, texts: Any, titles: Any, question: Any) -> Any:
    """Scores as the module's docstring tells, with one product at a time."""
    builder = PromptBuilder(draft)
    head, asked = builder.head, builder.query(question)
    encoded = builder.encoder.encode(texts)
    headers = [builder.encoder.encode([f"[1] {title}\n" if title else "[1] "])[0].ids for title in titles]
    runs = [
        see(draft, ids := [*head, *header, *text.ids], range(len(ids)))
        for header, text in zip(headers, encoded, strict=True)
    ]

    @cache
    def query_from(start: int) -> Any:
        return see(draft, asked, range(start, start + len(asked)))

    def query_at(place: Any) -> Any:
        return query_from(len(head) + (place // BUCKET + 1) * BUCKET)

    sink = see(draft, head, range(len(head)))
    total = [[0.0] * len(text.ids) for text in encoded]
    for layer, index in HEADS:
        kv = index // 2
        scaling = runs[0].scaling[layer]
        weights = []  # per token of the question: logits of all passages' tokens, titles included
        for t in range(len(asked)):
            first = query_at(0)
            row = [float(first.query[layer][index, t] @ sink.key[layer][kv, s]) * scaling for s in range(len(head))]
            for header, text, run in zip(headers, encoded, runs, strict=True):
                for place in range(len(header) + len(text.ids)):
                    seen = query_at(place)
                    row.append(float(seen.query[layer][index, t] @ run.key[layer][kv, len(head) + place]) * scaling)
            largest = max(row)
            powers = [math.exp(x - largest) for x in row]
            weights.append([p / sum(powers) for p in powers[len(head) :]])
        highest = [max(column) for column in zip(*weights, strict=True)]
        at = 0
        for number, (header, text) in enumerate(zip(headers, encoded, strict=True)):
            for i in range(len(text.ids)):
                total[number][i] += highest[at + len(header) + i] / sum(highest) / len(HEADS)
            at += len(header) + len(text.ids)
    return total


@pytest.mark.thorough
def test_scores_are_those_of_a_plain_loop(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_passage, "BUCKET", 8)
    monkeypatch.setitem(globals(), "BUCKET", 8)  # the loop's
    scorer = scorer_of(tiny, codec=Float32KeyCodec())  # int8 is tested with the store
    found = scorer.score_tokens(QUESTION, PASSAGES)
    for row, expected in zip(found.scores, plain_loop(tiny, TEXTS, TITLES, QUESTION), strict=True):
        assert torch.allclose(row, torch.tensor(expected), atol=1e-5)
    assert float(sum(row.sum() for row in found.scores)) < 1  # the rest lies on titles
    assert [len(spans) for spans in found.spans] == [len(row) for row in found.scores]
    assert found.tokens_read > sum(len(row) for row in found.scores)


def test_the_size_of_batches_changes_nothing(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(tiny)
    together = scorer.score_tokens(QUESTION, PASSAGES).scores
    monkeypatch.setattr(per_passage, "BATCH_TOKENS", 1)
    alone = scorer.score_tokens(QUESTION, PASSAGES).scores
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_layers_behind_the_last_head_do_not_run(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = load_model((tiny_llama(num_hidden_layers=6), tiny_tokenizer))
    ran = []
    for number, layer in enumerate(attention_view(draft.model).model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    scorer_of(draft).score_tokens(QUESTION, PASSAGES)
    assert set(ran) == {0, 1}  # the attention of layer 2 runs, its MLP does not


def test_what_is_in_the_store_is_not_read_again(tiny: LoadedModel) -> None:
    store = PassageStore()
    scorer = scorer_of(tiny, store)
    cold = scorer.score_tokens(QUESTION, PASSAGES)
    warm = scorer.score_tokens(QUESTION, PASSAGES)
    assert all(torch.equal(a, b) for a, b in zip(cold.scores, warm.scores, strict=True))
    assert warm.tokens_read == len(scorer.prompts.query(QUESTION))
    assert cold.tokens_read > warm.tokens_read + sum(len(row) for row in cold.scores)
    retitled = [PASSAGES[0], Passage(TEXTS[1], "Another title"), PASSAGES[2]]
    assert warm.tokens_read < scorer.score_tokens(QUESTION, retitled).tokens_read < cold.tokens_read
    assert scorer.ingest(PASSAGES) == 0


def test_ingest_tells_its_progress(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [Passage(f"{text} {number}", None) for number in range(4) for text in TEXTS]
    at_once = scorer_of(tiny, PassageStore()).ingest(passages)
    monkeypatch.setattr(per_passage, "INGESTED_TOGETHER", 5)
    told: list[tuple[int, int]] = []
    store = PassageStore()
    read = scorer_of(tiny, store).ingest(passages, lambda done, total: told.append((done, total)))
    assert told == [(5, 12), (10, 12), (12, 12)]
    assert read == at_once
    compressor = SpecPC(tiny, scorer="heads", heads=head_set(tiny), store=store)
    told.clear()
    assert compressor.ingest([p.text for p in passages], progress=lambda *counts: told.append(counts)) == 0
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_other_heads_or_another_model_find_nothing_of_it(
    tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    store = PassageStore()
    scorer_of(tiny, store).ingest(PASSAGES)
    assert scorer_of(tiny, store, ((1, 0),)).ingest(PASSAGES) > 0
    assert scorer_of(tiny, store, codec=Float32KeyCodec()).ingest(PASSAGES) > 0
    other = load_model((tiny_llama(rms_norm_eps=1e-5), tiny_tokenizer))
    with torch.no_grad():
        other.model.model.norm.weight.mul_(1.5)
    assert scorer_of(other, store).ingest(PASSAGES) > 0


def test_a_passage_much_longer_than_the_window(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = load_model((tiny_llama(max_position_embeddings=256), tiny_tokenizer))
    text = (DEMO / "docs" / "three-storms.md").read_text() * 4
    pc = SpecPC(draft, scorer="heads", heads=head_set(draft))
    result = pc.compress([text, TEXTS[1]], QUESTION, max_tokens=200)
    assert result.tokens_before > 16 * 256
    assert 100 < result.tokens_after <= 200
    assert all(math.isfinite(score) for passage in result.passages for _, _, score in passage.heat)


@pytest.mark.thorough
def test_a_hundred_thousand_tokens_never_meet_in_one_pass(tiny: LoadedModel) -> None:
    largest = 0

    def watch(module: Any, arguments: Any, options: Any) -> None:
        nonlocal largest
        largest = max(largest, options["input_ids"].numel())

    handle = attention_view(tiny.model).register_forward_pre_hook(watch, with_kwargs=True)
    text = (DEMO / "docs" / "three-storms.md").read_text()
    scorer = scorer_of(tiny)
    copies = 100_000 // len(scorer.prompts.encoder.encode([text])[0].ids) + 1
    found = scorer.score_tokens(QUESTION, [Passage(text, f"Copy {i}") for i in range(copies)])
    handle.remove()
    assert sum(len(row) for row in found.scores) > 100_000
    assert found.tokens_read > 100_000
    assert largest <= max(per_passage.BATCH_TOKENS, PIECE_TOKENS + 64)


def test_nan_is_an_error(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(torch.nan)
    draft = load_model((model, tiny_tokenizer))
    pc = SpecPC(draft, heads=head_set(draft))
    with pytest.raises(ScoringError, match="NaN or infinite"):
        pc.compress(TEXTS, QUESTION, max_tokens=5)


def test_a_question_or_a_title_that_fills_the_window(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = load_model((tiny_llama(max_position_embeddings=128), tiny_tokenizer))
    pc = SpecPC(draft, heads=head_set(draft))
    with pytest.raises(InvalidInputError, match="Shorten it"):
        pc.compress(TEXTS, "why? " * 100, max_tokens=5)
    with pytest.raises(InvalidInputError, match="Give a shorter title"):
        pc.compress(TEXTS, QUESTION, titles=["a long title " * 30, None, None], max_tokens=5)


def test_empty_passages_and_emoji(tiny: LoadedModel) -> None:
    pc = SpecPC(tiny, heads=head_set(tiny))
    result = pc.compress(["", "  ", "\U0001f600 is a face. \U0001f680 flies.", "Two. Three."], "face?", max_tokens=8)
    assert [passage.text for passage in result.passages[:2]] == ["", ""]
    assert 0 < result.tokens_after <= 8


def test_without_heads_scoring_heads_says_what_to_do(tiny: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="draftapprox calibrate --model"):
        SpecPC(tiny, scorer="heads").compress(TEXTS, QUESTION, max_tokens=5)
    with pytest.raises(InvalidInputError, match="calibrated heads"):
        SpecPC(tiny).ingest(TEXTS)


def test_of_a_book_only_what_bm25_finds_is_read(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = load_model((tiny_llama(), tiny_tokenizer))
    filler = "The harbour was quiet and the boats lay still. " * 4
    key = "The key of the vault Quarzheim is 4711. "
    book = filler * 700 + key + filler * 700
    (tokens,) = PromptBuilder(draft).encoder.encode([book])
    assert len(tokens.ids) > 2 * PIECE_TOKENS * per_passage.MOST_PIECES
    store = PassageStore()
    read = scorer_of(draft, store).score_tokens("What is the key of the vault Quarzheim?", [Passage(book), *PASSAGES])
    assert read.tokens_read < 1.5 * PIECE_TOKENS * per_passage.BEST_PIECES
    seen = {span for span, score in zip(read.spans[0], read.scores[0].tolist(), strict=True) if score > 0}
    start = book.index(key)
    assert {span for span in read.spans[0] if start <= span[0] and span[1] <= start + len(key)} <= seen
    alone = scorer_of(draft, store).score_tokens("What is the key of the vault Quarzheim?", PASSAGES)
    assert [row.shape for row in read.scores[1:]] == [row.shape for row in alone.scores]


def test_joint_attention_refuses_a_book_at_once(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    draft = load_model((tiny_llama(), tiny_tokenizer))
    with pytest.raises(InvalidInputError, match=r"tokens; joint attention reads at most 262,144 .* calibrate"):
        SpecPC(draft, scorer="joint").compress(["The mill is old. " * 30_000], "Is the mill old?", max_tokens=50)
