"""SpecPC beside what people use in its place, at equal tokens and with the same reader: evidence, answers, likelihood.

    python -m benchmarks.rag_peers --data hotpotqa_dev.json -n 40 --out rows.jsonl

The ways of `draftapprox eval-rag`, and with MiniLM's weights (see retention.py): MiniLM over sentences, LlamaIndex'
SentenceEmbeddingOptimizer (its percentile is the largest whose sentences fit the budget), and SpecPC with MiniLM as its
embedder. The reader is the embedded model.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from draftapprox_integrations import SpecKV, SpecPC, load_model
from draftapprox_integrations.evaluation.methods import method_config
from draftapprox_integrations.evaluation.rag import Way, evaluate_rag, summary, way_of, ways_of
from draftapprox_integrations.specpc.calibration.questions import read_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task
from draftapprox_integrations.specpc.scoring import EmbedderScorer

from .common import machine, table
from .minilm import MiniLM

PERCENTILES = [step / 40 for step in range(1, 41)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file that `draftapprox eval-rag` reads")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; a second run goes on from them")
    parser.add_argument("--model", default="default", help="draft and reader")
    parser.add_argument("-n", type=int, default=40, help="questions")
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 250])
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    model, begun = load_model(args.model), time.perf_counter()
    compressor = SpecPC(model)
    reader = SpecKV(model, None, method_config("full", {}, model.context_window))
    ways = ways_of(compressor)
    if MiniLM.installed():
        minilm = MiniLM.shared()
        ways = ways_of(compressor, {"MiniLM": EmbedderScorer(minilm)})
        ways["specpc with MiniLM"] = way_of(SpecPC(model, embedder=minilm))
        ways["SentenceEmbeddingOptimizer"] = optimizer_way(compressor)
    tasks = read_tasks(args.data, args.n, seed=args.seed)
    found = summary(list(evaluate_rag(tasks, ways, reader, args.budgets, args.out)))
    print(machine())
    print(
        f"draft and reader {model.name} ({model.dtype}); {len(tasks)} questions of {args.data.name}, seed {args.seed}; "
        f"this run {time.perf_counter() - begun:.0f} s\n"
    )
    rows = [
        [
            row["way"],
            "" if row["budget"] is None else str(row["budget"]),
            f"{100 * row['evidence']:.0f}",
            f"{100 * row['exact']:.0f}",
            f"{100 * row['f1']:.0f}",
            f"{row['likelihood']:.2f}",
            f"{row['tokens']:.0f}",
            f"{row['seconds']:.2f}",
        ]
        for row in found
    ]
    header = ["kept by", "budget", "evidence, %", "exact, %", "F1, %", "gold answer, nats/token", "prompt tokens", "s"]
    print(table(header, rows))


def optimizer_way(compressor: SpecPC) -> Way:
    """LlamaIndex' SentenceEmbeddingOptimizer with MiniLM, at the largest percentile that fits."""
    embedding = _Embedding()

    def shorten(task: Task, budget: int) -> list[str]:
        kept = [""] * len(task.passages)
        for percentile in PERCENTILES:
            optimizer = SentenceEmbeddingOptimizer(embed_model=embedding, percentile_cutoff=percentile)
            nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(task.passages)]
            made = optimizer.postprocess_nodes(nodes, QueryBundle(task.question))
            texts = [""] * len(task.passages)
            for node in made:
                texts[int(node.node.node_id)] = node.node.get_content()
            if sum(compressor.count_tokens(texts)) > budget:
                break
            kept = texts
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
