"""Questions with known evidence, from files: SQuAD, HotpotQA, MuSiQue, "lost in the middle", or one's own JSON lines.

A line of one's own: {"question": "...", "passages": ["...", ...], "evidence": ["a sentence of them", ...]}, and, if
there are any, "titles": one for each passage, or null. Without an answer in the passages, "evidence" is an empty list.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...results import Span
from ..text.segmentation import sentences
from .synthetic_tasks import Task

# How many of a SQuAD question's other passages are of the same article: none, some, or most.
_SAME_ARTICLE = (0, 4, 8)


def read_tasks(path: Path, count: int | None = None, *, passages: int = 12, seed: int = 0) -> list[Task]:
    """Read questions from a file; those whose evidence is not in their passages are left out.

    Args:
        path: A JSON file in the layout of SQuAD, HotpotQA, MuSiQue or "lost in the middle", or JSON lines: of these, or
            one's own.
        count: Number of questions to draw; None: all (of SQuAD 200).
        passages: Passages of each question, for SQuAD only; the others have their own.
        seed: Seed of the draw.

    Raises:
        InvalidInputError: the file cannot be read, or holds no question with evidence.
    """
    try:
        rows = read_rows(path)
        if isinstance(rows, dict):
            return squad_tasks(rows["data"], count or 200, passages, seed)
        tasks = [task for row in rows if (task := _task(row)) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} holds no questions that can be read ({type(error).__name__}: {error}). One JSON object a line: "
            '{"question": "...", "passages": ["..."], "evidence": ["a sentence of them"]}'
        ) from error
    if not any(task.evidence for task in tasks):
        raise InvalidInputError(f"{path} holds no question whose evidence stands in its passages")
    return tasks if count is None else random.Random(seed).sample(tasks, min(count, len(tasks)))


def read_rows(path: Path) -> dict[str, Any] | list[Any]:
    """The content of a JSON file in SQuAD's layout, a dict with "data"; of any other JSON or JSON lines the rows.

    Raises:
        OSError, ValueError: the file cannot be read, or is no JSON.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        return content if "data" in content else [content]
    return list(content)


def _task(row: dict[str, Any]) -> Task | None:
    if "supporting_facts" in row:
        return hotpot_task(row)
    if "ctxs" in row:
        return lost_task(row)
    return musique_task(row) if "question_decomposition" in row else _own(row)


def hotpot_task(row: dict[str, Any]) -> Task | None:
    """A question of HotpotQA or 2WikiMultihop; None if a supporting fact is missing."""
    titles: list[str | None] = []
    texts: list[str] = []
    spans: dict[tuple[str, int], tuple[int, Span]] = {}
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
    return Task("hotpotqa", row["question"].strip(), titles, texts, [spans[fact] for fact in facts], row["answer"])


def musique_task(row: dict[str, Any]) -> Task | None:
    """A question of MuSiQue: the sentence with each hop's answer; None if one is not in its paragraph."""
    paragraphs = {paragraph["idx"]: n for n, paragraph in enumerate(row["paragraphs"])}
    texts = [paragraph["paragraph_text"] for paragraph in row["paragraphs"]]
    evidence = []
    for hop in row["question_decomposition"]:
        index = paragraphs.get(hop["paragraph_support_idx"])
        found = -1 if index is None else texts[index].find(hop["answer"])
        if index is None or found < 0:
            return None
        evidence.append((index, _sentence_at(texts[index], found)))
    titles = [paragraph["title"] for paragraph in row["paragraphs"]]
    return Task("musique", row["question"], titles, texts, evidence, row["answer"])


def lost_task(row: dict[str, Any]) -> Task | None:
    """A question of "lost in the middle" (Liu et al. 2024): the gold passage's first sentence with an answer."""
    texts = [passage["text"] for passage in row["ctxs"]]
    gold = next((i for i, passage in enumerate(row["ctxs"]) if passage.get("isgold")), None)
    found = [] if gold is None else [(at, one) for one in row["answers"] if (at := texts[gold].find(one)) >= 0]
    if gold is None or not found:
        return None
    start, answer = min(found)
    titles = [passage.get("title") for passage in row["ctxs"]]
    return Task("lost", row["question"].strip(), titles, texts, [(gold, _sentence_at(texts[gold], start))], answer)


def _own(row: dict[str, Any]) -> Task | None:
    texts, evidence = list(row["passages"]), []
    for piece in row["evidence"]:
        index = next((i for i, text in enumerate(texts) if piece in text), None)
        if index is None:
            return None
        start = texts[index].index(piece)
        evidence.append((index, (start, start + len(piece))))
    titles = row.get("titles") or [None] * len(texts)
    return Task("own", row["question"], list(titles), texts, evidence, row.get("answer", ""))


def squad_tasks(articles: Sequence[dict[str, Any]], count: int, passages: int, seed: int) -> list[Task]:
    """Draw questions of SQuAD's articles, each with its paragraph among others; one without an answer has no evidence.

    The other paragraphs are of the same article in part, and half of the questions come with titles.
    """
    rng, made = random.Random(seed), []
    paragraphs = [(article["title"].replace("_", " "), one) for article in articles for one in article["paragraphs"]]
    pairs = [(index, question) for index, (_, one) in enumerate(paragraphs) for question in one["qas"]]
    for index, question in rng.sample(pairs, min(count, len(pairs))):
        of_article = [i for i, (title, _) in enumerate(paragraphs) if i != index and title == paragraphs[index][0]]
        others = rng.sample(of_article, min(len(of_article), rng.choice(_SAME_ARTICLE), passages - 1))
        elsewhere = [i for i, (title, _) in enumerate(paragraphs) if title != paragraphs[index][0]]
        order = [index, *others, *rng.sample(elsewhere, min(len(elsewhere), passages - 1 - len(others)))]
        rng.shuffle(order)
        texts, titled = [paragraphs[i][1]["context"] for i in order], rng.random() < 0.5
        titles = [paragraphs[i][0] if titled else None for i in order]
        gold, answers = order.index(index), question["answers"]
        start = min((answer["answer_start"] for answer in answers), default=None)
        evidence = [] if start is None else [(gold, _sentence_at(texts[gold], start))]
        answer = answers[0]["text"] if answers else ""
        made.append(Task("squad", question["question"].strip(), titles, texts, evidence, answer))
    return made


def _sentence_at(text: str, position: int) -> Span:
    return next(span for span in sentences(text) if span[0] <= position < span[1])
