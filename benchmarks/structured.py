"""Invented tables, logs, JSON, code and other text with a structure of its own, each with a question about one unit.

A few documents of one kind are read together. Their units differ in names and numbers only. The asked unit survives if
it is kept whole, word for word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from draftapprox_integrations import SpecPC
from draftapprox_integrations.models.loading import LoadedModel
from draftapprox_integrations.specpc.scoring.bm25 import BM25Index
from draftapprox_integrations.specpc.store.passage_store import PassageStore
from draftapprox_integrations.specpc.text import Packer, Sentence

DOCUMENTS = 3
UNITS = 24  # of each document
_FIRST = (
    "Alder Birch Cobble Dun Elm Fallow Grim Hazel Iron Juniper Kel Larch Marsh Nettle Oak Pike Quarry Rowan".split()
)
_SECOND = "brook bury combe dale field ford gate holm hurst ley mere moor shaw stead stoke thorpe ton wick".split()
_PEOPLE = "Anna Ben Cleo David Ella Farid Greta Hugo".split()


@dataclass(frozen=True)
class StructuredQuestion:
    """A question about one unit of structured documents.

    Attributes:
        family: What the documents are.
        passages: The documents.
        text: The question.
        unit: The asked unit as it stands in a document.
        header: The line that names its columns; "" if there is none.
    """

    family: str
    passages: list[str]
    text: str
    unit: str
    header: str = ""


@dataclass(frozen=True)
class _Made:
    """Documents of a family: units to be asked for, with their questions."""

    documents: list[str]
    asked: list[tuple[str, str]]
    header: str = ""


def structured_questions(n: int, seed: int) -> list[StructuredQuestion]:
    """`n` questions of each family."""
    questions = []
    for family, make in FAMILIES.items():
        for number in range(n):
            rng = random.Random(f"{seed} {family} {number}")
            made = make(rng, _names(rng))
            text, unit = rng.choice(made.asked)
            questions.append(StructuredQuestion(family, made.documents, text, unit, made.header))
    return questions


def structured_rows(draft: LoadedModel, n: int, seed: int, ratios: Sequence[float]) -> list[list[str]]:
    """Per method and family the share of questions whose unit survives, in percent, at each ratio."""
    methods: dict[str, SpecPC] = {
        "default": SpecPC(draft, store=PassageStore()),
        "calibrated heads": SpecPC(draft, scorer="heads", store=PassageStore()),
    }
    hits: dict[tuple[str, str], list[int]] = {}
    for question in structured_questions(n, seed):
        total = sum(methods["default"].count_tokens(question.passages))
        for column, ratio in enumerate(ratios):
            budget = int(ratio * total)
            kept = {"BM25 over lines": best_lines(methods["default"], question, budget)}
            for name, pc in methods.items():
                result = pc.compress(question.passages, question.text, max_tokens=budget)
                kept[name] = [passage.text for passage in result.passages]
            for name, texts in kept.items():
                survives = any(question.unit in text for text in texts)
                hits.setdefault((name, question.family), [0] * len(ratios))[column] += survives
                if name == "default" and question.header:
                    both = any(question.unit in text and question.header in text for text in texts)
                    key = "default, with its header", question.family
                    hits.setdefault(key, [0] * len(ratios))[column] += both
    for name in dict.fromkeys(name for name, _ in hits):
        rows = [counts for (method, _), counts in hits.items() if method == name]
        hits[name, "all"] = [sum(column) for column in zip(*rows, strict=True)]
    of_all = {name: n * sum(method == name for method, _ in hits) - n for name, _ in hits}
    return [
        [name, family, *(f"{100 * count / (of_all[name] if family == 'all' else n):.0f}" for count in counts)]
        for (name, family), counts in sorted(hits.items())
    ]


def best_lines(counter: SpecPC, question: StructuredQuestion, budget: int) -> list[str]:
    """What is kept of each document if BM25 ranks lines, or items where a document has no lines."""
    lines = []
    for index, text in enumerate(question.passages):
        position = 0
        for line in text.splitlines(keepends=True):
            stripped = line.strip()
            if stripped:
                start = position + line.index(stripped)
                lines.append(Sentence(index, start, start + len(stripped), stripped))
            position += len(line)
    scores = BM25Index([line.text for line in lines], [line.passage for line in lines]).scores(question.text)
    order = [lines[i] for i in scores.argsort(descending=True, stable=True).tolist()]
    packer = Packer(question.passages, counter.count_tokens(question.passages), "\n", counter.count_tokens)
    return packer.fill(order, budget)[0].texts


def _names(rng: random.Random) -> list[str]:
    names = [first + second for first in _FIRST for second in _SECOND]
    return rng.sample(names, DOCUMENTS * UNITS)


def _documents(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), UNITS):
        yield names[start : start + UNITS]


def _table(rng: random.Random, names: Sequence[str]) -> _Made:
    header = "| Bridge | Opened | Length (m) | Material |\n|---|---|---|---|"
    rows = {
        name: f"| {name} | {rng.randint(1800, 2020)} | {rng.randint(20, 900)} | {rng.choice(['stone', 'wood'])} |"
        for name in names
    }
    documents = [
        f"# Bridges, part {i}\n\n{header}\n" + "\n".join(rows[x] for x in group) + "\n"
        for i, group in enumerate(_documents(names), 1)
    ]
    return _Made(documents, [(f"How long is the bridge at {name}?", rows[name]) for name in names], header)


def _csv(rng: random.Random, names: Sequence[str]) -> _Made:
    header = "name,opened,staff,visitors"
    rows = {name: f"{name},{rng.randint(1800, 2020)},{rng.randint(2, 90)},{rng.randint(1000, 90000)}" for name in names}
    documents = [header + "\n" + "\n".join(rows[x] for x in group) + "\n" for group in _documents(names)]
    return _Made(documents, [(f"How many people visit the museum of {name}?", rows[name]) for name in names], header)


def _log(rng: random.Random, names: Sequence[str]) -> _Made:
    def line(name: str, number: int) -> str:
        level = rng.choice(["INFO", "INFO", "WARN", "DEBUG"])
        stamp = f"2026-03-{rng.randint(1, 28):02d} 10:{number:02d}:{rng.randint(0, 59):02d}"
        return f"{stamp} {level} worker-{rng.randint(1, 9)} host={name.lower()} finished in {rng.randint(5, 4000)} ms"

    rows = {name: line(name, number % 60) for number, name in enumerate(names)}
    documents = ["\n".join(rows[x] for x in group) + "\n" for group in _documents(names)]
    return _Made(documents, [(f"How long did the job on {name.lower()} take?", rows[name]) for name in names])


def _json(rng: random.Random, names: Sequence[str], indent: int | None = 2) -> _Made:
    values = {
        name: {"name": name, "opened": rng.randint(1800, 2020), "colour": rng.choice(["red", "blue", "grey"])}
        for name in names
    }
    documents = [json.dumps([values[x] for x in group], indent=indent) for group in _documents(names)]
    facts = {name: json.dumps([value], indent=indent)[1:-1].strip() for name, value in values.items()}
    return _Made(documents, [(f"When was {name} opened?", facts[name]) for name in names])


def _minified(rng: random.Random, names: Sequence[str]) -> _Made:
    return _json(rng, names, None)


def _code(rng: random.Random, names: Sequence[str]) -> _Made:
    def function(name: str) -> str:
        return (
            f"def connect_{name.lower()}(session):\n"
            f"    port = {rng.randint(1000, 9999)}\n"
            f"    session.open(port, timeout={rng.randint(1, 99)})\n"
            f"    return session"
        )

    functions = {name: function(name) for name in names}
    documents = [
        "import sockets\n\n\n" + "\n\n\n".join(functions[x] for x in group) + "\n" for group in _documents(names)
    ]
    asked = [(f"Which timeout does connect_{name.lower()} use?", functions[name]) for name in names]
    return _Made(documents, asked)


def _transcript(rng: random.Random, names: Sequence[str]) -> _Made:
    turns = {
        name: f"[{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}] {rng.choice(_PEOPLE)}: the hall of {name} is "
        f"{rng.choice(['open', 'closed', 'let'])} until {rng.randint(1, 12)} pm on {rng.choice(['Monday', 'Friday'])}"
        for name in names
    }
    documents = ["\n".join(turns[x] for x in group) + "\n" for group in _documents(names)]
    return _Made(documents, [(f"What did they say about the hall of {name}?", turns[name]) for name in names])


def _settings(rng: random.Random, names: Sequence[str]) -> _Made:
    sections = {
        name: f"[{name.lower()}]\nport = {rng.randint(1000, 9999)}\nretries = {rng.randint(1, 9)}" for name in names
    }
    documents = ["\n\n".join(sections[x] for x in group) + "\n" for group in _documents(names)]
    asked = [(f"Which port does {name.lower()} use?", "\n".join(sections[name].split("\n")[:2])) for name in names]
    return _Made(documents, asked)


def _html(rng: random.Random, names: Sequence[str]) -> _Made:
    items = {
        name: f"<li>{name}: founded in {rng.randint(1100, 1900)}, {rng.randint(200, 9000)} people</li>"
        for name in names
    }
    documents = ["<ul>" + "".join(items[x] for x in group) + "</ul>" for group in _documents(names)]
    return _Made(documents, [(f"How many people live in {name}?", items[name]) for name in names])


def _inventory(rng: random.Random, names: Sequence[str]) -> _Made:
    items = {
        name: f"a {rng.choice(['red', 'blue', 'green'])} vase from {name} of {rng.randint(1500, 1900)}"
        for name in names
    }
    documents = [
        "The inventory lists " + ", ".join(items[x] for x in group) + ", and nothing else."
        for group in _documents(names)
    ]
    return _Made(documents, [(f"How old is the vase from {name}?", items[name]) for name in names])


FAMILIES: dict[str, Callable[[random.Random, Sequence[str]], _Made]] = {
    "table": _table,
    "csv": _csv,
    "log": _log,
    "json": _json,
    "json, one line": _minified,
    "code": _code,
    "transcript": _transcript,
    "settings": _settings,
    "html": _html,
    "one long sentence": _inventory,
}
