"""Questions with passages, by what is kept of them: evidence, answers, the gold answer's likelihood, time."""

from __future__ import annotations

import json
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..chat.answering import rag_prompt
from ..engine.engine import SpecKV
from ..specpc.calibration.synthetic_tasks import Task
from ..specpc.compressor import SpecPC
from ..specpc.scoring import BM25Scorer, Scorer
from ..specpc.text.segmentation import segment

# What is kept of a task's passages in at most so many tokens: a text per passage, empty where nothing is; or one text,
# of what forgets where its parts come from.
Way = Callable[[Task, int], list[str] | str]


def ways_of(compressor: SpecPC, others: Mapping[str, Scorer] | None = None) -> dict[str, Way]:
    """Ways to shorten passages that need no other model than the compressor's: "specpc", "bm25", "first".

    Args:
        compressor: Counts the tokens, and is "specpc".
        others: Further scorers by name; their sentences are packed as those of "bm25".
    """
    scorers = {"bm25": BM25Scorer(), **(others or {})}
    packed = {
        name: way_of(SpecPC(compressor.draft, tokenizer=compressor.tokenizer, scorer=scorer))
        for name, scorer in scorers.items()
    }
    return {"specpc": way_of(compressor), **packed, "first": lambda task, budget: _first(compressor, task, budget)}


def evaluate_rag(
    tasks: Sequence[Task],
    ways: Mapping[str, Way],
    reader: SpecKV,
    budgets: Sequence[int],
    path: Path,
    *,
    max_new_tokens: int = 32,
) -> Iterator[dict[str, Any]]:
    """Rows of each task, way and budget, appended to a file; rows that it holds are not made again.

    Args:
        tasks: Questions with passages, evidence and an answer.
        ways: By name. "full", all passages, is added with no budget.
        reader: Answers from what is kept, in its chat template.
        budgets: Tokens to keep.
        path: JSON lines. A run that was killed goes on from them.
        max_new_tokens: Most tokens of an answer.

    Yields:
        "task" (its number), "way", "budget" (None for "full"), "evidence" (the share that is kept), "exact", "f1",
        "likelihood" (of the gold answer, nats per token), "tokens", "seconds" (to shorten), "answer".
    """
    known = {(row["task"], row["way"], row["budget"]): row for row in read_rows(path)}
    for number, task in enumerate(tasks):
        wanted = [(number, "full", None), *((number, name, budget) for budget in budgets for name in ways)]
        missing = [one for one in wanted if one not in known]
        kept, seconds = [], []
        for _, name, budget in missing:
            started = time.perf_counter()
            kept.append(task.passages if budget is None else ways[name](task, budget))
            seconds.append(time.perf_counter() - started)
        measured: Iterable[dict[str, Any]] = _measured(task, kept, reader, max_new_tokens) if missing else ()
        with path.open("a", encoding="utf-8") as file:
            for key, took, found in zip(missing, seconds, measured, strict=True):
                known[key] = {"task": number, "way": key[1], "budget": key[2], "seconds": took} | found
                file.write(json.dumps(known[key]) + "\n")
        yield from (known[one] for one in wanted)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if it is missing; a line that was cut off by a kill is removed from it."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means by way and budget, "full" first, then by budget."""
    groups: dict[tuple[str, int | None], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["budget"]), []).append(row)
    measures = ("evidence", "exact", "f1", "likelihood", "tokens", "seconds")
    return [
        {"way": way, "budget": budget, "tasks": len(group)}
        | {name: mean(float(row[name]) for row in group if row[name] is not None) for name in measures}
        for (way, budget), group in sorted(groups.items(), key=lambda item: item[0][1] or 0)
    ]


def exact_and_f1(answer: str, gold: str) -> tuple[float, float]:
    """SQuAD's exact match and F1 over words, without case, punctuation and articles (Rajpurkar et al. 2016)."""
    said, wanted = _normal(answer), _normal(gold)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted), float(said == wanted)
    return float(said == wanted), 2 * common / (len(said) + len(wanted))


def _normal(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _measured(
    task: Task, kept: Sequence[Sequence[str] | str], reader: SpecKV, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """What a reader makes of each selection of a task's passages; it answers all of them in one running batch."""
    tokenizer = reader.target.require_tokenizer()
    prompts = []
    for texts in kept:
        messages = [{"role": "user", "content": rag_prompt(_context(task, texts), task.question)}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    answers = reader.generate(prompts, max_new_tokens=max_new_tokens)
    gold = tokenizer(task.answer, add_special_tokens=False)["input_ids"]
    pieces = [" ".join(task.passages[index][a:b].split()) for index, (a, b) in task.evidence]
    for texts, ids, made in zip(kept, prompts, answers, strict=True):
        answer = made.text.strip()
        exact, f1 = exact_and_f1(answer, task.answer)
        owned = [" ".join((texts if isinstance(texts, str) else texts[i]).split()) for i, _ in task.evidence]
        yield {
            "evidence": mean(piece in text for piece, text in zip(pieces, owned, strict=True)) if pieces else None,
            "exact": exact,
            "f1": f1,
            "likelihood": reader.log_likelihood(ids, gold).per_token if gold else None,
            "tokens": len(ids),
            "answer": answer,
        }


def _context(task: Task, texts: Sequence[str] | str) -> list[str]:
    """What is kept, passages under their titles."""
    if isinstance(texts, str):
        return [texts]
    return [f"{title}\n{text}" if title else text for title, text in zip(task.titles, texts, strict=True) if text]


def way_of(compressor: SpecPC) -> Way:
    """What a compressor keeps, the passages' titles given."""

    def shorten(task: Task, budget: int) -> list[str] | str:
        result = compressor.compress(task.passages, task.question, titles=task.titles, max_tokens=budget)
        return [passage.text for passage in result.passages]

    return shorten


def _first(compressor: SpecPC, task: Task, budget: int) -> list[str]:
    """The first sentences, in the order of the passages: what a prompt that is cut off keeps."""
    kept, used = [], 0
    for text, sentences in zip(task.passages, segment(task.passages), strict=True):
        counts = compressor.count_tokens([one.text for one in sentences])
        end = 0
        for one, count in zip(sentences, counts, strict=True):
            if used + count > budget:
                used = budget
                break
            used, end = used + count, one.end
        kept.append(text[:end])
    return kept
