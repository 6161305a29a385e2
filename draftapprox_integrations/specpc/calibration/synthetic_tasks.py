"""Synthetic tasks for calibration: invented passages, a question, and the sentences that hold the answer.

Nothing is downloaded and every name is invented, so a model cannot know the answers: it must find them. Four shapes:
facts in prose among passages of the same kind, keys and values, two hops, and facts that do not name their subject.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...results import Span

_WORDS = {
    "syllables": (
        "ba ben bor cal cor dan del dor el fen gar hal hol jar kel kor lan lin mar mel mor nar nel or pel ral "
        "ren ros sal sel tam tor ul val ven wil zan"
    ),
    "endings": ("a by dale den ford gate ham ia in is low mere mont o on stad ton um vik wick"),
    "first": (
        "Ada Bruno Carla Denis Edith Felix Greta Hugo Irma Jonas Karin Leo Mira Nils Olga Paul Rosa Stefan Tilda Viktor"
    ),
    "months": ("January February March April May June July August September October November December"),
    "goods": (
        "barley bicycles carpets cement clocks copper flax glass gloves honey lamps linen paper pottery ropes "
        "salt silk tiles timber wool"
    ),
    "colours": ("amber black blue brown crimson golden green grey orange purple red silver violet white yellow"),
    "animals": ("badger bear crane eagle falcon fox hare heron lynx otter owl raven salmon stag swan wolf"),
}
_LISTS = {kind: words.split() for kind, words in _WORDS.items()}

# kind of thing: how its passages speak of it, and what is told: (sentence, question); {x} the name, {v} the value.
_Fact = tuple[str, str, str]
_KINDS: dict[str, tuple[str, list[_Fact]]] = {
    "town": ("the town", [
        ("person", "Its first mayor was {v}.", "Who was the first to be mayor of {x}?"),
        ("year", "A great fire destroyed most of the houses in {v}.", "In which year did {x} burn?"),
        ("number", "At the last count {v} people lived there.", "What is the population of {x}?"),
        ("goods", "It lives mainly from the making of {v}.", "What does {x} produce?"),
        ("animal", "Its coat of arms shows a {v}.", "Which animal stands on the arms of {x}?"),
        ("day", "The yearly market opens on {v}.", "When does the market of {x} begin?"),
    ]),
    "company": ("the company", [
        ("person", "It was founded by {v} in a rented shed.", "Who started {x}?"),
        ("place", "Its headquarters have been in {v} from the beginning.", "Where is the head office of {x}?"),
        ("number", "Today {v} employees work in its halls.", "How many people does {x} employ?"),
        ("goods", "Nine tenths of the turnover come from {v}.", "What does {x} mostly sell?"),
        ("year", "Its shares have been traded since {v}.", "Since when has {x} been listed?"),
        ("colour", "All its vans are painted {v}.", "What colour are the vehicles of {x}?"),
    ]),
    "person": ("she", [
        ("place", "She was born in {v}, the youngest of four children.", "What is the birthplace of {x}?"),
        ("day", "Every year on {v} she gave a concert for the poor.", "On what day did {x} play for the poor?"),
        ("person", "Her teacher, {v}, had noticed her early.", "By whom was {x} taught?"),
        ("year", "The prize of the academy was given to her in {v}.", "In what year did {x} win the prize?"),
        ("animal", "A tame {v} followed her wherever she went.", "Which animal did {x} keep?"),
        ("number", "In all she wrote {v} letters, most of them lost.", "How many letters are by {x}?"),
    ]),
    "ship": ("the ship", [
        ("place", "It was built in {v} of oak and iron.", "Where was the {x} launched?"),
        ("person", "{v} commanded it on every voyage.", "Who was captain of the {x}?"),
        ("number", "Its holds take {v} tons.", "What can the {x} carry?"),
        ("year", "It was lost with all hands in {v}.", "When did the {x} sink?"),
        ("goods", "Its usual cargo was {v}.", "What did the {x} transport as a rule?"),
        ("colour", "From far away it was known by its {v} sails.", "Which colour were the sails of the {x}?"),
    ]),
}  # fmt: skip
_FILLERS = [
    "Little more is known about the early years.",
    "Travellers of the time wrote about it with some surprise.",
    "Much has been said about this, and not all of it is true.",
    "The archives were moved twice and are still being sorted.",
    "There were quarrels, as there always are, but they were settled in the end.",
    "A small exhibition tells the story to visitors.",
    "Opinions differ on whether that was wise.",
    "Since then hardly anything has changed.",
]
_HOPS: list[tuple[str, str, str, str]] = [  # first sentence about {x}, second about {y}, kind of {v}, question
    ("The plans for {x} were drawn by {y}.", "{y} grew up in {v}.", "place", "Where did the architect of {x} grow up?"),
    ("{x} belongs to {y}.", "{y} made a fortune with {v}.", "goods", "With what did the owner of {x} get rich?"),
    ("The song of {x} is by {y}.", "{y} died in {v}.", "year", "In which year did the author of the song of {x} die?"),
    ("{x} is guarded by {y}.", "The badge of {y} is a {v}.", "animal", "What is on the badge of the guard of {x}?"),
]  # fmt: skip


SHAPES = ("prose", "pairs", "hops", "split")


@dataclass(frozen=True)
class Task:
    """A question among passages.

    Attributes:
        shape: One of `SHAPES`, or the kind of data that it comes from.
        question: The question.
        titles, passages: The passages and what they are called, None for no title.
        evidence: (passage, (start, end)) of each sentence that is needed; none if there is no answer.
        answer: The answer.
    """

    shape: str
    question: str
    titles: list[str | None]
    passages: list[str]
    evidence: list[tuple[int, Span]]
    answer: str


def make_tasks(
    count: int, passages: int = 10, seed: int = 0, shapes: Sequence[str] = ("prose", "pairs", "hops")
) -> list[Task]:
    """`count` tasks of `passages` passages each, the shapes in turn; the same for the same seed.

    Raises:
        ValueError: fewer than 4 passages.
    """
    if passages < 4:
        raise ValueError(f"passages must be >= 4; got {passages}")
    rng = random.Random(seed)
    makers = {"prose": _prose, "pairs": _pairs, "hops": _hops, "split": _split}
    return [makers[shapes[i % len(shapes)]](rng, passages) for i in range(count)]


def _name(rng: random.Random) -> str:
    start = rng.sample(_LISTS["syllables"], rng.choice((1, 2)))
    return "".join(start).capitalize() + rng.choice(_LISTS["endings"])


def _value(kind: str, rng: random.Random) -> str:
    def pick(words: str) -> str:
        return rng.choice(_LISTS[words])

    makers: dict[str, Callable[[], str]] = {
        "person": lambda: f"{pick('first')} {_name(rng)}",
        "place": lambda: _name(rng),
        "year": lambda: str(rng.randint(1620, 1990)),
        "number": lambda: f"{rng.randint(12, 9900):,}",
        "goods": lambda: pick("goods"),
        "animal": lambda: pick("animals"),
        "colour": lambda: pick("colours"),
        "day": lambda: f"{rng.randint(1, 28)} {pick('months')}",
    }
    return makers[kind]()


def _article(rng: random.Random, kind: str, name: str) -> tuple[str, list[tuple[str, str, str]]]:
    """A passage on `name` without its opening, as sentences; and of each fact (sentence, question, value)."""
    facts = []
    for value_kind, sentence, question in rng.sample(_KINDS[kind][1], 5):
        value = _value(value_kind, rng)
        facts.append((sentence.format(v=value), question.format(x=name), value))
    sentences = [fact[0] for fact in facts]
    for filler in rng.sample(_FILLERS, 2):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    opening = (
        f"This is an account of {_KINDS[kind][0]} called {name}." if kind != "person" else f"{name} was a musician."
    )
    return " ".join([opening, *sentences]), facts


def _prose(rng: random.Random, count: int) -> Task:
    """Facts in prose; half of the passages are of the kind asked about, and only the title and opening name them."""
    asked = rng.choice(list(_KINDS))
    kinds = [asked if i < (count + 1) // 2 else rng.choice(list(_KINDS)) for i in range(count)]
    names = [_value("person", rng) if kind == "person" else _name(rng) for kind in kinds]
    articles = [_article(rng, kind, name) for kind, name in zip(kinds, names, strict=True)]
    sentence, question, answer = rng.choice(articles[0][1])
    return _shuffled(rng, "prose", question, names, [text for text, _ in articles], [(0, sentence)], answer)


def _split(rng: random.Random, count: int) -> Task:
    """As `_prose` without titles: a passage's first sentence alone names it, and is needed beside the fact."""
    asked = rng.choice(list(_KINDS))
    names = [_value("person", rng) if asked == "person" else _name(rng) for _ in range(count)]
    articles = [_article(rng, asked, name) for name in names]
    sentence, question, answer = rng.choice(articles[0][1])
    opening = articles[0][0][: articles[0][0].index(".") + 1]
    texts = [text for text, _ in articles]
    return _shuffled(rng, "split", question, [None] * count, texts, [(0, opening), (0, sentence)], answer)


def _pairs(rng: random.Random, count: int) -> Task:
    """Lines of keys and values, as in lists, tables and logs."""
    line = rng.choice(("{k}: {v}.", "- {k} = {v}", "| {k} | {v} |", "The code of {k} is {v}."))
    lists = [[(_name(rng), str(rng.randint(1000, 999_999))) for _ in range(10)] for _ in range(count)]
    key, value = rng.choice(lists[0])
    texts = ["\n".join(line.format(k=k, v=v) for k, v in pairs) for pairs in lists]
    names = [f"List {_name(rng)}" for _ in lists]
    question = rng.choice(("What is the value for {k}?", "Which number belongs to {k}?", "Give the code of {k}."))
    evidence = [(0, line.format(k=key, v=value))]
    return _shuffled(rng, "pairs", question.format(k=key), names, texts, evidence, value)


def _hops(rng: random.Random, count: int) -> Task:
    """Two passages that must be read together; the question names only what the first is about."""
    first, second, kind, question = rng.choice(_HOPS)
    x, y, value = f"{_name(rng)} Hall", _value("person", rng), _value(kind, rng)
    names, texts = [x, y], []
    for name, fact in ((x, first), (y, second)):
        sentences = rng.sample(_FILLERS, 4)
        sentences.insert(rng.randint(0, 4), fact.format(x=x, y=y, v=value))
        texts.append(" ".join([f"This page is about {name}.", *sentences]))
    for index in range(count - 2):
        other = _HOPS[index % len(_HOPS)]
        a, b, v = f"{_name(rng)} Hall", _value("person", rng), _value(other[2], rng)
        sentences = rng.sample(_FILLERS, 4)
        sentences.insert(rng.randint(0, 4), other[index // len(_HOPS) % 2].format(x=a, y=b, v=v))
        names.append((a, b)[index // len(_HOPS) % 2])
        texts.append(" ".join([f"This page is about {names[-1]}.", *sentences]))
    evidence = [(0, first.format(x=x, y=y)), (1, second.format(y=y, v=value))]
    return _shuffled(rng, "hops", question.format(x=x), names, texts, evidence, value)


def _shuffled(
    rng: random.Random,
    shape: str,
    question: str,
    titles: Sequence[str | None],
    passages: list[str],
    evidence: list[tuple[int, str]],
    answer: str,
) -> Task:
    order = list(range(len(passages)))
    rng.shuffle(order)
    spans = []
    for passage, sentence in evidence:
        start = passages[passage].index(sentence)
        spans.append((order.index(passage), (start, start + len(sentence))))
    return Task(shape, question, [titles[i] for i in order], [passages[i] for i in order], spans, answer)
