"""Questions to fit weights on, in which words mislead: the other passages are the ones that BM25 finds nearest.

Nothing here is reported on. The pairs below are put among real passages; `paraphrased.py` has other pairs, for reports,
among invented ones.
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

# question|evidence that shares no content word with it
_PAIRS = """
Where does the tailor work?|The man who sews suits has his workshop in Rye.
Which sport is played in the stadium?|Two rugby sides meet at the arena every Saturday.
How much does the sofa weigh?|At 70 kilograms the couch is hard to lift.
Who translated the poem?|These verses were put into English by Lena Voss.
When did the volcano last erupt?|The mountain spat lava for the final time in 1911.
What did the plumber repair?|The man who sees to the pipes mended a leaking tap.
Which flower does the queen prefer?|Her Majesty is fonder of tulips than of anything else.
How did the soldiers cross the river?|The troops got over the stream on rafts.
Why did the singer leave the band?|The vocalist quit her group over an unpaid bill.
What is kept in the cellar?|Barrels of cider are stored down in the basement.
Who taught the prince to ride?|An old groom gave His Highness lessons on horseback.
Where did the hikers spend the night?|The walkers slept in a shepherd's hut.
When will the road be finished?|Work on the highway ends in September.
What do owls hunt?|These birds of prey live mostly on voles.
How many students failed?|Nine of the pupils did not pass.
Which language is the film in?|The actors in this movie speak Finnish.
Who paid for the statue?|A widow met the cost of the monument.
What is the tallest building of the town?|No other house in the place is as high as the grain silo.
When was the bank robbed?|Gunmen emptied the vault on 11 July.
Where are the tickets sold?|Anyone who wants to get in can pay at the kiosk.
How old was the composer when he died?|The musician passed away at 54.
Which metal is the ring made of?|The band on her finger is platinum.
What did the farmer plant?|This spring the grower sowed rye.
Why is the mayor angry?|The head of the town hall is furious at the delay.
Who lives in the lighthouse?|A retired pilot has made the beacon his home.
What does the nurse do in her spare time?|When off duty, the hospital's Sister Ines carves wood.
How far is the airport from the hotel?|From the inn it is 12 miles to where the planes land.
When is rent due?|Tenants pay on the first of each month.
Which country makes the best watches?|The finest timepieces come from Switzerland.
What made the crowd laugh?|Everyone in the audience giggled at the goat.
Who wrote the anonymous letter?|The unsigned note was in the hand of a cousin.
Where can I buy stamps?|Postage is available at the tobacconist's.
What is the purpose of the valve?|It is there to keep the pressure from getting too high.
How do you start the engine?|To get the motor going, turn the key twice.
Which mountain did the climbers fail on?|The alpinists had to give up below the top of Eiger.
When did the company go bankrupt?|The firm became insolvent in 2004.
Who is the heir of the baron?|Everything the nobleman had will go to his niece.
What is the maximum speed on the motorway?|Nobody may drive faster than 110 there.
Why did the bridge collapse?|The span fell down because of rust.
How many children does the senator have?|The politician is the father of four.
Where is the oldest university?|The first seat of higher learning was Bologna.
What should you do if the dog bites?|When attacked by the hound, wash the wound at once.
Which illness does the drug treat?|The medicine helps patients with malaria.
Who invented the zip?|The fastener was thought up by a Swede.
When do the shops open on Monday?|At the start of the week stores let customers in from ten.
What did the divers find in the wreck?|From the sunken ship frogmen brought up porcelain.
How is the cheese made?|Milk is curdled, pressed, and left to ripen for a year.
Where was the mobile phone left?|She had forgotten her cell on a train.
Which colour should the wall be painted?|They want that side of the room in ochre.
Why was the trial postponed?|The court hearing was put off since a juror fell ill.
What are the wages of a cook?|Kitchen staff earn 14 pounds an hour.
Who cut the hedge?|The shrubs were trimmed by a neighbour.
When was television introduced?|The first sets showed pictures at home in 1936.
How long does the medicine last?|The pill's effect wears off after six hours.
What did the customs officers seize?|Border guards confiscated ivory.
Which actor plays the villain?|The bad guy is portrayed by Ian Moss.
Where do salmon lay their eggs?|These fish spawn in gravel beds upstream.
Who is in charge of the kitchen?|The chef there is Rosa Lind.
What happened to the old theatre?|The playhouse was turned into flats.
How does the tortoise protect itself?|The reptile pulls its head and legs into the shell.
When does the child go to bed?|The little one is put to sleep at eight.
Which tax did the king abolish?|The monarch did away with the levy on salt.
What is wrong with the printer?|The machine no longer feeds paper.
Why do leaves fall in autumn?|Trees shed their foliage to save water for the cold months.
Who guards the prison?|Watch over the inmates is kept by twelve wardens.
How was the emperor murdered?|The sovereign was killed with a poisoned fig.
What does the contract forbid?|Under the agreement neither party may sublet.
Where did the painter get his ideas?|The artist was inspired by walks in the marsh.
When is the password changed?|Users must pick a new secret word every ninety days.
Which animal is the fastest on land?|No beast runs quicker than the cheetah.
How many seats does the plane have?|The aircraft takes 180 passengers.
What is the refund period?|Customers get their money back within 30 days.
"""


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


def paraphrased_tasks(paths: Sequence[Path], count: int, seed: int, passages: int = 10) -> list[Task]:
    """The pairs above: evidence between two sentences of a page of WikiQA, among other pieces.

    A third, two thirds or all of these are the nearest to the question. With the nearest alone, having no word of the
    question would tell the evidence from the rest.
    """
    _, pieces = _read_wikiqa(paths)
    texts = [text for _, text, _ in pieces]
    rng, near = random.Random(seed), nearest(texts)
    pairs = [line.split("|") for line in _PAIRS.strip().splitlines()]
    made = []
    for text, evidence in rng.sample(pairs, min(count, len(pairs))):
        around = texts[rng.randrange(len(texts))]
        before, after = (around[a:b] for a, b in rng.choices(sentences(around), k=2))
        own = f"{before} {evidence} {after}"
        start = len(before) + 1
        titled = rng.random() < 0.5
        close = near(text, (passages - 1) * rng.choice((1, 2, 3)) // 3)
        chosen_others = [*close, *rng.sample(range(len(texts)), passages - 1 - len(close))]
        others = [(pieces[i][0] if titled else None, texts[i]) for i in chosen_others]
        chosen = [(rng.choice(pieces)[0] if titled else None, own), *others]
        made.append(_task("paraphrased", text, chosen, [(start, start + len(evidence))], rng))
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
