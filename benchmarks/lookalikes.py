"""Questions about one of many passages that look alike: same kind, same phrases, another name and other numbers.

They are invented, with other wording than the tasks of calibration (specpc/calibration/synthetic_tasks.py). Nothing was
tuned on them.
"""

from __future__ import annotations

import random

from .common import Question

_Fact = tuple[str, str, str]  # (sentence, kind of value, question)
_KINDS: dict[str, tuple[str, list[_Fact]]] = {
    "Bridge": ("{n} spans a river with two names.", [
        ("It was opened to traffic on {v}.", "date", "When was {n} opened?"),
        ("The main span measures {v} metres.", "number", "How long is the main span of {n}?"),
        ("Engineer {v} was in charge of the works.", "person", "Which engineer built {n}?"),
        ("Around {v} vehicles cross it on a working day.", "number", "How many vehicles use {n} daily?"),
        ("The toll is {v} crowns for a lorry.", "number", "What does a lorry pay on {n}?"),
        ("Its lamps were replaced after the winter of {v}.", "year", "After which winter did {n} get new lamps?"),
    ]),
    "School": ("{n} is a secondary school in the north of the county.", [
        ("The head teacher is {v}.", "person", "Who is the head of {n}?"),
        ("There are {v} pupils in the current year.", "number", "How many pupils attend {n}?"),
        ("The library was given by {v}.", "person", "Who donated the library of {n}?"),
        ("The building dates from {v}.", "year", "From what year is the building of {n}?"),
        ("Lessons begin on {v}.", "date", "On what date do lessons start at {n}?"),
        ("A bus ticket is paid for those who live more than {v} metres away.", "number",
         "Beyond what distance does {n} pay for the bus?"),
    ]),
    "Hotel": ("{n} stands at the edge of the old park.", [
        ("It offers {v} rooms on four floors.", "number", "How many rooms are there in {n}?"),
        ("The present owner, {v}, bought it at auction.", "person", "To whom does {n} belong?"),
        ("The dining room was painted in {v}.", "year", "When was the dining room of {n} painted?"),
        ("A single room costs {v} crowns a night.", "number", "How much is a single room at {n}?"),
        ("It closes for the season on {v}.", "date", "When does {n} close for the season?"),
        ("The cook, {v}, trained abroad.", "person", "Who cooks at {n}?"),
    ]),
    "Mine": ("{n} has long been worked.", [
        ("The deepest shaft reaches {v} metres.", "number", "How deep is {n}?"),
        ("Work was stopped in {v} by a flood.", "year", "In which year did a flood stop work in {n}?"),
        ("The first claim was filed by {v}.", "person", "Who filed the first claim for {n}?"),
        ("The miners' feast is held on {v}.", "date", "On what day do the miners of {n} hold their feast?"),
        ("It yields {v} tonnes a year.", "number", "What is the yearly yield of {n}?"),
        ("A railway of {v} metres leads to the smelter.", "number", "How long is the railway of {n}?"),
    ]),
}  # fmt: skip
_FILLERS = [
    "Some of the older papers are kept by the parish.",
    "A photograph in the hall shows how it looked then.",
    "Visitors are asked to report at the gate.",
    "The county paid for a part of the repairs.",
    "People there speak of it with a certain pride.",
]
_STARTS = "Ash Birch Clay Dun Elm Frost Glen Hazel Iron Juniper King Lark Moss North Oak Pine Quarry Rush Stone Thorn"
_WORDS = "North South East West Old New Great Little Upper Lower Inner Outer"
_ENDS = "brook field hurst ley mouth pool ridge side water wood worth bank"
_FIRST = "Agnes Bernard Clara Dietrich Elsa Frank Gudrun Henrik Ines Jakob Klara Ludvig Maren Otto Petra Ragnar"
_LAST = "Aalto Berg Castell Dahl Eriksen Frisch Gram Holm Iversen Juhl Krog Lund Myhre Nygaard Olsen Ploug"
_MONTHS = "January March April June August October"


def lookalike_questions(
    count: int, passages: int, seed: int, alike_names: bool = False, untitled: bool = False
) -> list[Question]:
    """Make questions whose passages name their subject in the title and the first sentence only.

    Args:
        count: Number of questions.
        passages: Number of passages of each question.
        seed: Seed of the draw.
        alike_names: Make names from few words too ("North Moss Bridge", "North Clay Bridge", "Old Moss Bridge"), so
            that every word of a name also occurs in other names.
        untitled: Give no titles, and count the first sentence as evidence beside the asked one.
    """
    rng = random.Random(seed)
    return [_question(rng, passages, alike_names, untitled) for _ in range(count)]


def _question(rng: random.Random, passages: int, alike_names: bool, untitled: bool) -> Question:
    kind = rng.choice(list(_KINDS))
    opening, facts = _KINDS[kind]
    if alike_names:
        some = -(-passages // 3)  # at least three quarters of the word pairs become names
        first, second = rng.sample(_WORDS.split(), some), rng.sample(_STARTS.split(), some)
        names = [f"{a} {b} {kind}" for a in first for b in second]
    else:
        names = [f"{start}{end} {kind}" for start in _STARTS.split() for end in _ENDS.split()]
    titles = rng.sample(names, passages)
    gold, asked = rng.randrange(passages), rng.randrange(len(facts))
    texts, evidence, answer = [], "", ""
    for index, title in enumerate(titles):
        values = [_value(rng, value) for _, value, _ in facts]
        told = [sentence.format(v=value) for (sentence, _, _), value in zip(facts, values, strict=True)]
        if index == gold:
            evidence, answer = told[asked], values[asked]
        rng.shuffle(told)
        for filler in rng.sample(_FILLERS, 2):
            told.insert(rng.randint(0, len(told)), filler)
        texts.append(" ".join([opening.format(n=title), *told]))
    start = texts[gold].index(evidence)
    spans = [(gold, (start, start + len(evidence)))]
    if untitled:
        spans.insert(0, (gold, (0, len(opening.format(n=titles[gold])))))
    return Question(
        text=facts[asked][2].format(n=titles[gold]),
        passages=texts,
        answers=[answer],
        titles=None if untitled else list(titles),
        evidence=spans,
    )


def _value(rng: random.Random, kind: str) -> str:
    if kind == "date":
        return f"{rng.randint(1, 28)} {rng.choice(_MONTHS.split())} {rng.randint(1890, 2015)}"
    if kind == "person":
        return f"{rng.choice(_FIRST.split())} {rng.choice(_LAST.split())}"
    return str(rng.randint(1850, 2010) if kind == "year" else rng.randint(30, 4000))
