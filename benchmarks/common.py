"""Shared by the benchmarks: the machine's name, questions, tables."""

from __future__ import annotations

import json
import math
import os
import platform
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from draftapprox_integrations.specpc.text.segmentation import sentences


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
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, dict):
        return squad_questions(path, count, passages, seed)
    made = [_hotpot(row) if "supporting_facts" in row else _musique(row) for row in data]
    usable = [question for question in made if question is not None]
    return random.Random(seed).sample(usable, min(count, len(usable)))


def _hotpot(row: dict[str, Any]) -> Question | None:
    titles: list[str | None] = []
    texts: list[str] = []
    spans: dict[tuple[str, int], tuple[int, tuple[int, int]]] = {}
    for title, pieces in row["context"]:
        text = ""
        for number, sentence in enumerate(pieces):
            text += "" if not text or sentence.startswith(" ") else " "
            start = len(text) + len(sentence) - len(sentence.lstrip())
            text += sentence
            spans[title, number] = (len(texts), (start, len(text.rstrip())))
        titles.append(title)
        texts.append(text)
    facts = [(title, number) for title, number in row["supporting_facts"]]
    if any(fact not in spans for fact in facts):
        return None
    evidence = [spans[fact] for fact in facts]
    return Question(row["question"].strip(), texts, answers=[row["answer"]], titles=titles, evidence=evidence)


def _musique(row: dict[str, Any]) -> Question | None:
    paragraphs = {paragraph["idx"]: n for n, paragraph in enumerate(row["paragraphs"])}
    texts = [paragraph["paragraph_text"] for paragraph in row["paragraphs"]]
    evidence = []
    for hop in row["question_decomposition"]:
        index = paragraphs.get(hop["paragraph_support_idx"])
        found = -1 if index is None else texts[index].find(hop["answer"])
        if index is None or found < 0:
            return None
        evidence.append((index, next(span for span in sentences(texts[index]) if span[0] <= found < span[1])))
    titles = [paragraph["title"] for paragraph in row["paragraphs"]]
    return Question(row["question"], texts, answers=[row["answer"]], titles=titles, evidence=evidence)


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
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
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
