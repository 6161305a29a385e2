"""What the benchmarks share: the machine's name, questions, tables."""

from __future__ import annotations

import json
import math
import os
import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers


@dataclass(frozen=True)
class Question:
    """A question among passages, one of which holds the answer."""

    text: str
    passages: list[str]
    gold: int
    answers: list[str]


def squad_questions(path: Path, count: int, passages: int, seed: int) -> list[Question]:
    """`count` questions of a SQuAD-like file, each with its paragraph among others drawn at random."""
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
        questions.append(Question(question["question"], texts, order.index(index), answers))
    return questions


def machine() -> str:
    """One line on where and with what this ran."""
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
    """95% Wilson interval of a share."""
    z, p = 1.96, hits / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
