"""Questions to fit weights on, in which words mislead: the other passages are the ones that BM25 finds nearest.

Nothing here is reported on.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task
from draftapprox_integrations.specpc.scoring.bm25 import BM25Index
from draftapprox_integrations.specpc.text.segmentation import sentences

_LONGEST = 110  # words of a piece of a WikiQA page, about those of a retriever's chunk


def wikiqa_tasks(paths: Sequence[Path], count: int, seed: int, passages: int = 10) -> list[Task]:
    """Questions of WikiQA, each with its page's piece among the nearest pieces of all pages.

    Args:
        paths: WikiQA's files with titles (its dev and test parts), tab-separated.
        count: Number of questions; those whose page does not answer them are left out.
        seed: Seed of the draw.
        passages: Passages of each question.
    """
    questions, pieces = _read_wikiqa(paths)
    answered = [(text, golds) for text, golds in questions if golds]
    rng, near = random.Random(seed), nearest([f"{title} {text}" for title, text, _ in pieces])
    made = []
    for text, golds in rng.sample(answered, min(count, len(answered))):
        gold = golds[0]
        others = [i for i in near(text, passages + len(golds)) if i not in golds][: passages - 1]
        chosen = [(pieces[i][0], pieces[i][1]) for i in (gold, *others)]
        made.append(_task("wikiqa", text, chosen, pieces[gold][2], rng))
    return made


def nearest_squad_tasks(articles: Sequence[dict[str, Any]], count: int, seed: int, passages: int = 10) -> list[Task]:
    """Answered questions of SQuAD's articles, each with its paragraph among the nearest without its answer."""
    paragraphs = [(article["title"].replace("_", " "), one) for article in articles for one in article["paragraphs"]]
    pairs = [(i, asked) for i, (_, one) in enumerate(paragraphs) for asked in one["qas"] if asked["answers"]]
    rng, near = random.Random(seed), nearest([f"{title} {one['context']}" for title, one in paragraphs])
    made = []
    for gold, asked in rng.sample(pairs, min(count, len(pairs))):
        answers = {answer["text"].lower() for answer in asked["answers"]}
        others = [
            i
            for i in near(asked["question"], 6 * passages)
            if i != gold and not any(answer in paragraphs[i][1]["context"].lower() for answer in answers)
        ]
        chosen = [(paragraphs[i][0], paragraphs[i][1]["context"]) for i in (gold, *others[: passages - 1])]
        start = asked["answers"][0]["answer_start"]
        spans = [next(span for span in sentences(chosen[0][1]) if span[0] <= start < span[1])]
        made.append(_task("squad, nearest", asked["question"].strip(), chosen, spans, rng))
    return made


def nearest(texts: Sequence[str]) -> Callable[[str, int], list[int]]:
    """A function that lists the indices of the `count` texts nearest to a query by BM25, equal texts once."""
    index = BM25Index(list(texts), range(len(texts)))

    def find(query: str, count: int) -> list[int]:
        found: dict[str, int] = {}
        for i in index.scores(query).argsort(descending=True, stable=True).tolist():
            found.setdefault(texts[i], i)
            if len(found) == count:
                break
        return list(found.values())

    return find


def _read_wikiqa(
    paths: Sequence[Path],
) -> tuple[list[tuple[str, list[int]]], list[tuple[str, str, list[tuple[int, int]]]]]:
    """Questions, each with the indices of the pieces that answer it, and pieces: (title, text, spans that answer)."""
    questions: list[tuple[str, list[int]]] = []
    pieces: list[tuple[str, str, list[tuple[int, int]]]] = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        of_question: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            of_question.setdefault(row["QuestionID"], []).append(row)
        for group in of_question.values():
            golds = []
            for title, text, spans in _pieces(group):
                if spans:
                    golds.append(len(pieces))
                pieces.append((title, text, spans))
            questions.append((group[0]["Question"].strip(), golds))
    return questions, pieces


def _pieces(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, list[tuple[int, int]]]]:
    made: list[tuple[str, str, list[tuple[int, int]]]] = []
    text = ""
    spans: list[tuple[int, int]] = []
    for row in rows:
        sentence = re.sub(r" ([.,;:?!)])", r"\1", row["Sentence"].strip()).replace("( ", "(")
        if text and len(f"{text} {sentence}".split()) > _LONGEST:
            made.append((row["DocumentTitle"], text, spans))
            text, spans = "", []
        start = len(text) + bool(text)
        text = f"{text} {sentence}".strip()
        if row["Label"] == "1":
            spans.append((start, len(text)))
    return [*made, (rows[0]["DocumentTitle"], text, spans)]


def _task(
    shape: str,
    question: str,
    chosen: Sequence[tuple[str | None, str]],
    spans: list[tuple[int, int]],
    rng: random.Random,
) -> Task:
    """A task whose evidence is in the first of the chosen passages, which are then shuffled."""
    order = list(range(len(chosen)))
    rng.shuffle(order)
    titles, texts = [chosen[i][0] for i in order], [chosen[i][1] for i in order]
    return Task(shape, question, titles, texts, [(order.index(0), span) for span in spans], "")
