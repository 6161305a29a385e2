"""A needle in 100,000 tokens: whether it is among the 1,024 tokens kept, and the peak memory.

    python -m benchmarks.needle --data squad-like.json

The haystack repeats the file's paragraphs, each with a number in front, so that all passages differ. The needle is a
passage of one sentence, at 20 depths. The haystack is read once and its keys are kept in memory.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from draftapprox_integrations import PassageStore, SpecPC

from .common import machine, table
from .specpc_cost import peak_bytes

NEEDLE = "The spare key of the boathouse in {place} hangs behind the {colour} barometer."
QUESTION = "Where is the spare key of the boathouse in {place}?"
PLACES = ["Ardal", "Brekka", "Corvik", "Dunmore", "Eidsund", "Falmar", "Grimby", "Havnes", "Istad", "Jorvik"]
COLOURS = ["brass", "copper", "ivory", "silver", "walnut"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--draft", default="default")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--keep", type=int, default=1024)
    parser.add_argument("--depths", type=int, default=20)
    args = parser.parse_args()
    data = json.loads(args.data.read_text(encoding="utf-8"))["data"]
    texts = [paragraph["context"] for article in data for paragraph in article["paragraphs"]]
    store = PassageStore()
    engines = {
        "heads": SpecPC(args.draft, scorer="heads", store=store),
        "fused": SpecPC(args.draft, scorer="fused", store=store),
    }
    haystack: list[str] = []
    total = 0
    while total < args.tokens:
        text = f"No. {len(haystack) + 1}. {texts[len(haystack) % len(texts)]}"
        haystack.append(text)
        total += engines["fused"].count_tokens([text])[0]
    rng = random.Random(0)
    found = dict.fromkeys(engines, 0)
    seconds: list[float] = []
    peak = 0

    def ask(scorer: str, passages: list[str], question: str) -> str:
        result = engines[scorer].compress(passages, question, max_tokens=args.keep)
        return "\n".join(passage.text for passage in result.passages)

    for number in range(args.depths):
        place, colour = rng.choice(PLACES), rng.choice(COLOURS)
        passages = list(haystack)
        passages.insert(rng.randrange(len(haystack) + 1), NEEDLE.format(place=place, colour=colour))
        question = QUESTION.format(place=place)
        start = time.perf_counter()
        if number == 0:
            peak = peak_bytes(lambda: ask("heads", passages, question))  # noqa: B023 - called at once
        for scorer in engines:
            found[scorer] += NEEDLE.format(place=place, colour=colour) in ask(scorer, passages, question)
        seconds.append(time.perf_counter() - start)
    print(machine())
    print(
        f"{engines['fused'].draft.name}, window {engines['fused'].draft.context_window:,}; {len(haystack)} passages, "
        f"{total:,} tokens, {args.keep:,} kept\nfirst question {seconds[0]:.0f} s, with {peak / 2**20:.0f} MiB beyond "
        f"the model; later ones {sum(seconds[1:]) / max(len(seconds) - 1, 1) / len(engines):.1f} s each\n"
    )
    print(table(["scorer", "needles kept"], [[name, f"{count} of {args.depths}"] for name, count in found.items()]))


if __name__ == "__main__":
    main()
