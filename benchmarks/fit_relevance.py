"""Fit the relevance models that come with the package, on questions that no result is reported on.

    python -m benchmarks.fit_relevance --data hotpotqa_train.json musique_train.json 2wikimultihopqa.json squad.json \
        --wikiqa WikiQA-dev.tsv WikiQA-test.tsv \
        --store keys.db --out draftapprox_integrations/specpc/scoring/calibrated/relevance.json

The mixture: each file, invented questions of every shape, and questions in which words mislead (training_questions.py);
all sources have the same weight. Of SQuAD's articles the first half is used, the other is for reports. HotpotQA's
development questions and NQ-open are never used.

One model for each kind of attention and of similarity: "heads" and "joint" (on a part of the questions, as it reads all
passages again for every question); "none", "embedder" (MiniLM, with its cosines), "scorer" (MiniLM's order alone, in
place of a scorer of the user's). Three in ten questions come with retriever scores: MiniLM's similarity of passages
with noise, as a retriever is not the embedder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from draftapprox_integrations import PassageStore, load_model
from draftapprox_integrations.specpc.calibration.fit import HIDDEN, Example, fit_relevance, make_examples
from draftapprox_integrations.specpc.calibration.questions import read_rows, read_tasks, squad_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import SHAPES, Task, make_tasks
from draftapprox_integrations.specpc.scoring import CalibratedHeadsScorer, EmbedderScorer, JointAttentionScorer
from draftapprox_integrations.specpc.scoring.relevance import RelevanceModel, RelevanceModels, RelevanceScorer
from draftapprox_integrations.specpc.text import Passage

from .common import machine
from .minilm import MiniLM
from .remembered import Remembered
from .training_questions import nearest_squad_tasks, wikiqa_tasks

SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSON files in known layouts")
    parser.add_argument(
        "--wikiqa", type=Path, nargs="+", required=True, help="WikiQA's dev and test files, with titles"
    )
    parser.add_argument("--draft", default="default")
    parser.add_argument("-n", type=int, default=200, help="most questions of each file")
    parser.add_argument("--invented", type=int, default=240, help="invented questions")
    parser.add_argument("--joint", type=int, default=60, help="questions of each source that are read jointly too")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--store", type=Path, help="keeps what the draft has read, for the next run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begun = time.perf_counter()
    draft, embedder = load_model(args.draft), MiniLM.shared()
    sources = [tasks_of(path, args.n) for path in args.data]
    sources.append(make_tasks(args.invented, seed=SEED, shapes=SHAPES))
    sources.append(wikiqa_tasks(args.wikiqa, 2 * args.n, SEED))
    for path in args.data:
        if isinstance(rows := read_rows(path), dict):
            sources.append(nearest_squad_tasks(first_half(rows), args.n, SEED))
    store = None if args.store is None else PassageStore(args.store)
    heads = CalibratedHeadsScorer(draft, store=store)
    models: dict[tuple[str, str], RelevanceModel] = {}
    for attention, some in ((heads, sources), (JointAttentionScorer(draft), [s[: args.joint] for s in sources])):
        known = Remembered(attention)
        for semantic, other in (("none", None), ("embedder", embedder), ("scorer", EmbedderScorer(embedder))):
            examples: list[Example] = []
            for source in some:
                examples += make_examples(RelevanceScorer(known, other), source, retriever=by_retriever, seed=SEED)
            models[known.kind, semantic] = fit_relevance(examples, hidden=args.hidden)
            print(
                f"{known.kind}, {semantic}: {len(examples)} questions, {time.perf_counter() - begun:.0f} s",
                file=sys.stderr,
            )
    args.out.write_text(json.dumps(RelevanceModels(models).content()) + "\n", encoding="utf-8")
    print(machine())
    print(f"{draft.name}; {', '.join(f'{path.name} {len(s)}' for path, s in zip(args.data, sources, strict=False))}, ")
    print(f"{args.invented} invented questions; written to {args.out}")


def tasks_of(path: Path, count: int) -> list[Task]:
    """Questions of a file; of SQuAD those of the first half of its articles."""
    rows = read_rows(path)
    if isinstance(rows, dict):
        return squad_tasks(first_half(rows), count, 12, SEED)
    return read_tasks(path, count, seed=SEED)


def first_half(content: dict[str, Any]) -> list[dict[str, Any]]:
    """SQuAD's articles that weights may be fitted on."""
    return list(content["data"][: len(content["data"]) // 2])


def by_retriever(query: str, passages: Sequence[Passage]) -> list[float]:
    """MiniLM's similarity of the query and each passage with its title, with noise of twice its deviation."""
    vectors = MiniLM.shared()([query, *(f"{one.title}\n{one.text}" if one.title else one.text for one in passages)])
    scores = torch.mv(vectors[1:], vectors[0])
    noise = torch.randn(len(scores), generator=torch.Generator().manual_seed(len(query)))
    spread = float(scores.std()) if len(scores) > 1 else 0.0
    return [float(value) for value in scores + 2 * spread * noise]


if __name__ == "__main__":
    main()
