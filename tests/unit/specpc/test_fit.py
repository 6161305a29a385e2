"""Questions from files, and weights fitted to them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.specpc.calibration import fit
from draftapprox_integrations.specpc.calibration.fit import LEAST_QUESTIONS, Example, fit_relevance, make_examples
from draftapprox_integrations.specpc.calibration.questions import read_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import SHAPES, Task, make_tasks
from draftapprox_integrations.specpc.scoring.heads import HeadSet
from draftapprox_integrations.specpc.scoring.relevance import RelevanceScorer
from tests.unit.specpc.scoring.test_relevance import Level

OWN: dict[str, Any] = {
    "question": "When was the mill built?",
    "passages": ["The mill is old. It was built in 1821.", "The bridge is red. It is from 1932."],
    "evidence": ["It was built in 1821."],
}
HOTPOT: dict[str, Any] = {
    "question": "Who? ",
    "answer": "Ada",
    "context": [["Mill", ["A mill.", " Built by Ada."]], ["Ada", ["Ada lived.", " She died."]]],
    "supporting_facts": [["Mill", 1], ["Ada", 0]],
}
MUSIQUE = {
    "question": "Where?",
    "answer": "Lund",
    "paragraphs": [
        {"idx": 7, "title": "Ada", "paragraph_text": "Ada is a smith. She lives in Lund."},
        {"idx": 9, "title": "Mill", "paragraph_text": "The mill is Ada's. It is old."},
    ],
    "question_decomposition": [
        {"answer": "Ada", "paragraph_support_idx": 9},
        {"answer": "Lund", "paragraph_support_idx": 7},
    ],
}
LOST: dict[str, Any] = {
    "question": "when was the mill built",
    "answers": ["in 1821", "1821"],
    "ctxs": [
        {"title": "Bridge", "text": "A bridge of 1821.", "isgold": False},
        {"title": "Mill", "text": "A mill. It is from 1821. It is old.", "isgold": True},
    ],
}
SQUAD = {
    "data": [
        {
            "title": f"Town_{i}",
            "paragraphs": [
                {
                    "context": f"Town {i} lies by a river. It was founded in {1500 + i}.",
                    "qas": [
                        {
                            "question": f"When was town {i} founded?",
                            "answers": [{"text": str(1500 + i), "answer_start": 42}],
                        },
                        {"question": "Who is its mayor?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
        for i in range(10)
    ]
}


@pytest.fixture(autouse=True)
def a_quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than for what is shipped: the questions here are easy."""
    monkeypatch.setattr(fit, "_STEPS", 100)


def pieces(task: Task) -> list[str]:
    return [task.passages[passage][start:end] for passage, (start, end) in task.evidence]


def written(path: Path, content: Any, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")
    return path


def test_every_layout_gives_the_sentences_of_its_evidence(tmp_path: Path) -> None:
    for lines in (False, True):
        own, hotpot, musique, lost = read_tasks(written(tmp_path / "a", [OWN, HOTPOT, MUSIQUE, LOST], lines))
        assert pieces(own) == ["It was built in 1821."]
        assert pieces(hotpot) == ["Built by Ada.", "Ada lived."]
        assert hotpot.question == "Who?"
        assert hotpot.titles == ["Mill", "Ada"]
        assert pieces(lost) == ["It is from 1821."]
        assert (lost.answer, lost.titles) == ("1821", ["Bridge", "Mill"])
        assert pieces(musique) == ["The mill is Ada's.", "She lives in Lund."]
    made = read_tasks(written(tmp_path / "squad.json", SQUAD), 20, passages=5, seed=3)
    assert len(made) == 20
    for task in made:
        assert len(task.passages) == 5
        assert pieces(task) == ([] if "mayor" in task.question else [f"It was founded in {task.answer}."])
    assert read_tasks(tmp_path / "squad.json", 20, passages=5, seed=3) == made


def test_questions_whose_evidence_is_missing_are_left_out(tmp_path: Path) -> None:
    lost = [
        OWN | {"evidence": ["Nobody said this."]},
        HOTPOT | {"supporting_facts": [["Mill", 9]]},
        LOST | {"answers": ["1932"]},
        LOST | {"ctxs": LOST["ctxs"][:1]},
    ]
    assert len(read_tasks(written(tmp_path / "a", [OWN, *lost, OWN | {"evidence": []}]))) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '[{"question": "?"}]', "[1]", '{"question": "?"}', '{"data": 5}'])
def test_a_file_without_questions_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(InvalidInputError, match="holds no question"):
        read_tasks(tmp_path / "a")
    with pytest.raises(InvalidInputError, match="holds no questions that can be read"):
        read_tasks(tmp_path / "missing")


def test_every_shape_of_invented_questions_has_its_evidence() -> None:
    for task in make_tasks(40, 8, 5, SHAPES):
        assert all(
            piece and task.passages[p].count(piece) for (p, _), piece in zip(task.evidence, pieces(task), strict=True)
        )
        if task.shape == "split":
            opening, fact = pieces(task)
            assert task.answer in fact
            assert task.titles == [None] * 8
            assert opening[-1] == "."


def planted(count: int) -> list[Task]:
    """Questions whose evidence is what the attention of `Level("gold")` sees; words say nothing."""
    rng, made = random.Random(4), []
    for _ in range(count):
        texts = [
            " ".join(f"A {rng.choice(['red', 'blue', 'old'])} thing stands here." for _ in range(4)) for _ in range(3)
        ]
        gold = rng.randrange(3)
        texts[gold] = f"{texts[gold]} It is gold there. {texts[gold]}"
        start = texts[gold].index("It is gold")
        made.append(Task("own", "What else?", [None] * 3, texts, [(gold, (start, start + 18))], ""))
    return made


def test_a_fit_finds_the_signal_that_tells_evidence_and_says_how_sure_it_is() -> None:
    scorer = RelevanceScorer(Level("gold"))
    examples = make_examples(scorer, planted(60))
    assert sum(example.weight for example in examples) == pytest.approx(1)
    model = fit_relevance(examples)
    again = fit_relevance(examples)
    assert torch.equal(again.logits(examples[0].signals), model.logits(examples[0].signals))
    for example in make_examples(scorer, planted(30), seed=1):
        found = model.probabilities(example.signals)
        if example.labels.any():
            assert int(found.argmax()) == int(example.labels.argmax())
            assert float(found.max()) > 0.8
        assert float((found * (1 - example.labels)).max()) < 0.5


def test_questions_are_read_with_all_passages_with_few_and_without_the_evidence() -> None:
    tasks = make_tasks(200, 9, 3)
    examples = make_examples(RelevanceScorer(Level()), tasks)
    sizes = [example.signals.passages for example in examples]
    without = [size for size, example in zip(sizes, examples, strict=True) if not example.labels.any()]
    few = [size for size, example in zip(sizes, examples, strict=True) if size <= 6 and example.labels.any()]
    assert 10 <= len(without) <= 32
    assert set(without) <= {7, 8}  # all but one or two with the evidence
    assert 25 <= len(few) <= 58
    assert sizes.count(9) == 200 - len(without) - len(few)


def test_what_cannot_be_told_gets_its_share_as_probability() -> None:
    scorer = RelevanceScorer(Level())
    rng = random.Random(2)
    blind = []
    for example in make_examples(scorer, planted(60)):
        labels = torch.zeros(len(example.labels))
        labels[rng.randrange(len(labels))] = 1
        blind.append(Example(example.signals, labels, example.weight))
    model = fit_relevance(blind)
    expected = sum(float(model.probabilities(example.signals).sum()) for example in blind) / len(blind)
    assert expected == pytest.approx(1, abs=0.25)


def test_a_draft_is_fitted_to_questions_of_ones_own(tiny: LoadedModel, tmp_path: Path) -> None:
    data = written(tmp_path / "mine.jsonl", [OWN] * LEAST_QUESTIONS, lines=True)
    engine = SpecPC(tiny)
    found = engine.calibrate(tasks=6, heads=2, data=data)
    assert found.relevance is not None
    assert engine.has_heads_of_its_own
    scores = engine.compress(OWN["passages"], "When was the mill built?", top_n=1).passages
    again = SpecPC(tiny, heads=HeadSet.load(found.save(tmp_path / "heads.json")))
    after = again.compress(OWN["passages"], "When was the mill built?", top_n=1).passages
    assert [one.score for one in after] == pytest.approx([one.score for one in scores], abs=1e-6)
    plain = SpecPC(tiny, heads=HeadSet(found.model, found.fingerprint, found.heads))
    assert plain.compress(OWN["passages"], "When was the mill built?", top_n=1).passages[0].score != scores[0].score


def test_too_few_questions_to_fit_are_refused_before_any_work(tiny: LoadedModel, tmp_path: Path) -> None:
    data = written(tmp_path / "mine.jsonl", [OWN] * 5, lines=True)
    with pytest.raises(InvalidInputError, match=f"holds 5 questions.*at least {LEAST_QUESTIONS}"):
        SpecPC(tiny).calibrate(data=data)
