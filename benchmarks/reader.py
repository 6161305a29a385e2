"""What a reader makes of the compressed context: the log-likelihood of the gold answer, beside the whole context.

    python -m benchmarks.reader --lookalikes --out rows.jsonl
    python -m benchmarks.reader --data questions.json --out rows.jsonl     # SQuAD's, HotpotQA's or MuSiQue's layout

The methods of benchmarks.retention choose what is kept; passages come with their titles, in their order. The embedded
model reads them in its chat template, and the log-likelihood is that of the first gold answer as its reply, in nats per
token. Rows are kept in --out; a second run goes on from there.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from draftapprox_integrations import LoadedModel, SpecPC, load_model
from draftapprox_integrations.chat.answering import rag_prompt
from draftapprox_integrations.chat.template import Message, render_chat

from .common import Question, machine, measured_rows, read_questions, table
from .lookalikes import lookalike_questions
from .remembered import Remembered
from .retention import attention_scorers, packer_of, rankings
from .speckv_accuracy import interval

INSTRUCTION = "Use the context to answer the question in a few words."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a JSON file in SQuAD's, HotpotQA's or MuSiQue's layout")
    source.add_argument("--lookalikes", action="store_true", help="make the questions up")
    parser.add_argument("--out", type=Path, required=True, help="one JSON row per question; a run goes on from it")
    parser.add_argument("--model", default="default", help="the reader and the draft")
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="leave out what reads all passages in one prompt")
    args = parser.parse_args()

    model = load_model(args.model)
    counter, readers = SpecPC(model), attention_scorers(model, joint=not args.quick)
    if args.data:
        questions = read_questions(args.data, args.n, args.passages, args.seed)
    else:
        questions = lookalike_questions(args.n, args.passages, args.seed)
    begun = time.perf_counter()
    rows = measured_rows(args.out, questions, lambda q: measure(counter, readers, q, args.keep_ratio))
    print(machine())
    print(
        f"{model.name} ({model.dtype}) reads and drafts; {len(rows)} questions of "
        f"{args.data.name if args.data else 'benchmarks.lookalikes'}, seed {args.seed}; {args.keep_ratio:.0%} of the "
        f"passages' tokens are kept; this run {time.perf_counter() - begun:.0f} s\n"
    )
    lines = []
    for name in rows[0]:
        pairs = [row[name] - row["whole context"] for row in rows]
        difference = "" if name == "whole context" else interval(pairs)
        lines.append([name, f"{statistics.mean(row[name] for row in rows):.3f}", difference])
    print(table(["context", "log-likelihood of the gold answer, nats per token", "less the whole context's"], lines))


def measure(counter: SpecPC, readers: dict[str, Remembered], question: Question, keep_ratio: float) -> dict[str, float]:
    """The log-likelihood per token of the gold answer of one question, by what is kept."""
    model = counter.draft
    row = {
        "whole context": likelihood(model, question, question.passages),
        "no context": likelihood(model, question, [""] * len(question.passages)),
    }
    tokens = counter.count_tokens(question.passages)
    for name, (order, _) in rankings(readers, question, random.Random(question.text).randrange(2**31)).items():
        kept, _ = packer_of(counter, question, tokens, name).fill(order, int(keep_ratio * sum(tokens)))
        row[name] = likelihood(model, question, kept.texts)
    return row


@torch.inference_mode()
def likelihood(model: LoadedModel, question: Question, texts: Sequence[str]) -> float:
    """Log-likelihood in nats per token of the first gold answer, where the model has read `texts`."""
    context = [named for named, text in zip(question.titled(texts), texts, strict=True) if text]
    tokenizer = model.require_tokenizer()
    message = Message("user", rag_prompt(context, question.text, INSTRUCTION))
    prompt = tokenizer(render_chat(tokenizer, [message]), add_special_tokens=False)["input_ids"]
    gold = tokenizer(question.answers[0], add_special_tokens=False)["input_ids"]
    logits = model.model(torch.tensor([[*prompt, *gold[:-1]]]), logits_to_keep=len(gold)).logits[0]
    found = logits.float().log_softmax(-1).gather(1, torch.tensor(gold)[:, None])
    return float(found.mean())


if __name__ == "__main__":
    main()
