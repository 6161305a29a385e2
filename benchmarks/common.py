"""Shared by the benchmarks: the machine's name, questions, tables."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from draftapprox_integrations.evaluation.environment import processor
from draftapprox_integrations.specpc.calibration.questions import read_rows, read_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task
from draftapprox_integrations.specpc.scoring.bm25 import BM25Index


@dataclass(frozen=True)
class Question:
    """A question, its passages, and the evidence in them.

    Attributes:
        text: The question.
        passages: Texts.
        titles: Per passage its title; None where the data has none.
        answers: Accepted answers.
        gold: Index of the passage that must keep an accepted answer; unused with `evidence`.
        evidence: (passage, (start, end)) of each sentence that must be kept; None to look for an answer instead.
    """

    text: str
    passages: list[str]
    gold: int = -1
    answers: list[str] = field(default_factory=list)
    titles: list[str | None] | None = None
    evidence: list[tuple[int, tuple[int, int]]] | None = None

    def titled(self, texts: Sequence[str]) -> list[str]:
        """The kept text of each passage, after its title."""
        named = zip(self.titles or [None] * len(texts), texts, strict=True)
        return [f"{title}\n{text}" if title else text for title, text in named]

    def survives(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> bool:
        """Whether the kept texts and spans of the passages contain all of the evidence."""
        if self.evidence is None:
            return any(answer in texts[self.gold] for answer in self.answers)
        return all(any(a <= start and end <= b for a, b in spans[index]) for index, (start, end) in self.evidence)

    def share(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> float:
        """The share of the evidence that the kept texts and spans contain."""
        if not self.evidence:
            return float(self.survives(texts, spans))
        kept = [any(a <= start and end <= b for a, b in spans[i]) for i, (start, end) in self.evidence]
        return sum(kept) / len(kept)

    def survives_in(self, text: str) -> bool:
        """Whether `text` contains all of the evidence, anywhere and with any white space."""
        if self.evidence is None:
            return any(answer in text for answer in self.answers)
        spaced = " ".join(text.split())
        return all(" ".join(self.passages[i][a:b].split()) in spaced for i, (a, b) in self.evidence)


def read_questions(path: Path, count: int, passages: int, seed: int) -> list[Question]:
    """Read questions from a file in the layout of SQuAD, HotpotQA or MuSiQue.

    Args:
        path: The JSON file.
        count: Number of questions to draw.
        passages: Number of passages per question, for SQuAD only; the other data sets have their own.
        seed: Seed of the draw.
    """
    if isinstance(read_rows(path), dict):
        return squad_questions(path, count, passages, seed)
    return [of_task(task) for task in read_tasks(path, count, seed=seed)]


def of_task(task: Task) -> Question:
    """A question of the package's readers."""
    return Question(task.question, task.passages, answers=[task.answer], titles=task.titles, evidence=task.evidence)


def nq_questions(path: Path, count: int, passages: int, seed: int) -> list[Question]:
    """Draw questions of NQ-open, each with its passage among those without the answer that BM25 finds nearest.

    Args:
        path: The oracle file of "lost in the middle", one JSON object a line.
        count: Number of questions.
        passages: Number of passages of each.
        seed: Seed of the draw.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts, titles = [row["ctxs"][0]["text"] for row in rows], [row["ctxs"][0]["title"] for row in rows]
    index = BM25Index([f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)], range(len(texts)))
    rng = random.Random(seed)
    made: list[Question] = []
    for i in rng.sample(range(len(rows)), len(rows)):
        question, answers = rows[i]["question"], rows[i]["answers"]
        if len(made) == count:
            break
        if not any(answer in texts[i] for answer in answers):
            continue
        others: dict[str, int] = {}
        for j in index.scores(question).argsort(descending=True, stable=True).tolist():
            if texts[j] != texts[i] and not any(answer.lower() in texts[j].lower() for answer in answers):
                others.setdefault(texts[j], j)
            if len(others) == passages - 1:
                break
        order = [i, *others.values()]
        rng.shuffle(order)
        chosen, names = [texts[j] for j in order], [titles[j] for j in order]
        made.append(Question(question, chosen, gold=order.index(i), answers=answers, titles=names))
    return made


def squad_questions(path: Path, count: int, passages: int, seed: int) -> list[Question]:
    """Draw `count` questions of a SQuAD-like file, each with its paragraph among random others."""
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    pairs = [(index, question) for index, paragraph in enumerate(paragraphs) for question in paragraph["qas"]]
    rng = random.Random(seed)
    questions = []
    for index, question in rng.sample(pairs, min(count, len(pairs))):
        others = rng.sample([i for i in range(len(paragraphs)) if i != index], passages - 1)
        order = [index, *others]
        rng.shuffle(order)
        answers = [answer["text"] for answer in question["answers"]]
        texts = [paragraphs[i]["context"] for i in order]
        questions.append(Question(question["question"], texts, gold=order.index(index), answers=answers))
    return questions


def measured_rows(
    path: Path, questions: Sequence[Question], measure: Callable[[Question], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure each question and append its row to `path`, one JSON object per line; rows already there are kept."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for question in questions[len(rows) :]:
        rows.append(measure(question))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows[: len(questions)]


def machine() -> str:
    """One line with the processor, its cores, and the versions of torch and transformers."""
    name = processor()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% Wilson interval of the share `hits / n`."""
    z, p = 1.96, hits / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))
