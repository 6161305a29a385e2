"""SpecPC beside what people use in its place, at equal tokens and with the same reader: evidence, answers, likelihood.

    python -m benchmarks.rag_peers --data hotpotqa_dev.json -n 40 --out rows.jsonl

The ways of `draftapprox eval-rag`, and with MiniLM's weights (see retention.py): MiniLM over sentences, LlamaIndex'
SentenceEmbeddingOptimizer (its percentile is the largest whose sentences fit the budget), and SpecPC with MiniLM as its
embedder. The reader is the embedded model. LongLLMLingua runs in an environment of its own: --export writes what
longllmlingua.py reads, --beside reads what it kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from draftapprox_integrations import LoadedModel, SpecKV, SpecPC, load_model
from draftapprox_integrations.evaluation.methods import method_config
from draftapprox_integrations.evaluation.rag import Way, evaluate_rag, summary, way_of, ways_of
from draftapprox_integrations.specpc.calibration.questions import read_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task
from draftapprox_integrations.specpc.scoring import EmbedderScorer

from .common import machine, table
from .minilm import MiniLM
from .speckv_accuracy import interval

BUDGETS = [100, 250]
PERCENTILES = [step / 40 for step in range(1, 41)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file that `draftapprox eval-rag` reads")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; a second run goes on from them")
    parser.add_argument("--model", default="default", help="draft and reader")
    parser.add_argument("-n", type=int, default=40, help="questions")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--export", type=Path, help="write questions and budgets for longllmlingua.py, and stop")
    parser.add_argument("--beside", type=Path, help="what that program kept")
    args = parser.parse_args()
    model, begun = load_model(args.model), time.perf_counter()
    tasks = read_tasks(args.data, args.n, seed=args.seed)
    if args.export:
        asked = [{"question": t.question, "passages": _titled(t), "budgets": args.budgets} for t in tasks]
        args.export.write_text(json.dumps(asked), encoding="utf-8")
        return
    rows = peer_rows(tasks, model, args.budgets, args.out, args.beside)
    print(machine())
    print(
        f"draft and reader {model.name} ({model.dtype}); {len(tasks)} questions of {args.data.name}, seed {args.seed}; "
        f"this run {time.perf_counter() - begun:.0f} s\n"
    )
    print(table(*peer_table(rows)))


def peer_rows(
    tasks: Sequence[Task], model: LoadedModel, budgets: Sequence[int], out: Path, beside: Path | None = None
) -> list[dict[str, Any]]:
    """A row for each task, way and budget, see `evaluate_rag`."""
    compressor = SpecPC(model)
    reader = SpecKV(model, None, method_config("full", {}, model.context_window), max_batch_size=16)
    ways = ways_of(compressor)
    if MiniLM.installed():
        minilm = MiniLM.shared()
        ways = ways_of(compressor, {"MiniLM": EmbedderScorer(minilm)})
        ways["specpc with MiniLM"] = way_of(SpecPC(model, embedder=minilm))
        ways["SentenceEmbeddingOptimizer"] = optimizer_way(compressor)
    if beside is not None:
        ways |= ways_beside(beside, budgets)
    return list(evaluate_rag(tasks, ways, reader, budgets, out, max_new_tokens=16))


def peer_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: means by way and budget, and the gold answer's likelihood less SpecPC's, paired."""
    lines = []
    for one in summary(rows):
        mine = {row["task"]: row for row in rows if (row["way"], row["budget"]) == (one["way"], one["budget"])}
        ours = {row["task"]: row for row in rows if (row["way"], row["budget"]) == ("specpc", one["budget"])}
        paired = [mine[task]["likelihood"] - ours[task]["likelihood"] for task in mine if task in ours]
        lines.append(
            [
                one["way"],
                "" if one["budget"] is None else str(one["budget"]),
                f"{100 * one['evidence']:.0f}",
                f"{100 * one['exact']:.0f}",
                f"{100 * one['f1']:.0f}",
                f"{one['likelihood']:.2f}",
                interval(paired) if paired and one["way"] != "specpc" else "",
                f"{one['tokens']:.0f}",
                f"{one['seconds']:.2f}",
            ]
        )
    likelihood = "gold answer, nats/token"
    measures = ["evidence, %", "exact, %", "F1, %", likelihood, "less specpc's", "prompt tokens", "s"]
    return ["kept by", "budget", *measures], lines


def ways_beside(path: Path, budgets: Sequence[int]) -> dict[str, Way]:
    """The ways of longllmlingua.py, whose kept texts lie in a file."""
    kept = {row["question"]: row["kept"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}

    def way(form: str) -> Way:
        return lambda task, budget: str(kept[task.question][form][list(budgets).index(budget)])

    return {form: way(form) for form in next(iter(kept.values()))}


def _titled(task: Task) -> list[str]:
    return [f"{title}\n{text}" if title else text for title, text in zip(task.titles, task.passages, strict=True)]


def optimizer_way(compressor: SpecPC) -> Way:
    """LlamaIndex' SentenceEmbeddingOptimizer with MiniLM, at the largest percentile that fits.

    All passages are one node: it keeps a sentence or more of each node, which is beyond these budgets.
    """
    embedding = _Embedding()

    def shorten(task: Task, budget: int) -> str:
        text, kept = "\n\n".join(_titled(task)), ""
        for percentile in PERCENTILES:
            optimizer = SentenceEmbeddingOptimizer(embed_model=embedding, percentile_cutoff=percentile)
            (made,) = optimizer.postprocess_nodes([NodeWithScore(node=TextNode(text=text))], QueryBundle(task.question))
            if sum(compressor.count_tokens([made.node.get_content()])) > budget:
                break
            kept = made.node.get_content()
        return kept

    return shorten


class _Embedding(BaseEmbedding):
    """MiniLM for LlamaIndex."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return _vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return _vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return _vector(query)

    def _get_text_embeddings(self, texts: list[str]) -> list[Any]:
        return [vector.tolist() for vector in MiniLM.shared()(texts)]


@cache
def _vector(text: str) -> list[float]:
    return [float(value) for value in MiniLM.shared()([text])[0]]


if __name__ == "__main__":
    main()
