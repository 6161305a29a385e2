"""Write questions as prompts that another environment can read: chat template applied, with SpecKV's lookahead.

    python -m benchmarks.peers.export_prompts --data hotpotqa_dev.json -n 40 --out questions.jsonl

One JSON object a line: "id", "prompt" (text for a tokenizer that adds nothing), "answer" (the gold one), "lookahead"
(token ids that the draft writes greedily after the prompt) and "self_lookahead" (those that the target writes after the
quarter of the prompt that SpecPC selects with its attention). A killed run goes on from the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from draftapprox_integrations import LoadedModel, load_model
from draftapprox_integrations.chat.answering import rag_prompt
from draftapprox_integrations.chat.template import Message, render_chat
from draftapprox_integrations.speckv.lookahead import DraftLookahead, SelfLookahead
from draftapprox_integrations.specpc.calibration.questions import read_tasks
from draftapprox_integrations.specpc.calibration.synthetic_tasks import Task

from .rows import read_rows

INSTRUCTION = "Use the context to answer the question in a few words."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file that `draftapprox eval-rag` reads")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("-n", type=int, default=40, help="questions")
    parser.add_argument("--model", default="default", help="the target: its tokenizer, its chat template")
    parser.add_argument("--draft", help="writes the lookahead; default: the target itself")
    parser.add_argument("--lookahead-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args(argv)
    target = load_model(args.model)
    draft = load_model(args.draft) if args.draft else target
    tasks = [task for task in read_tasks(args.data, args.n, seed=args.seed) if task.answer]
    for _ in export(tasks, target, draft, args.lookahead_tokens, args.out, f"{args.data.stem}-{args.seed}"):
        pass


def export(
    tasks: Sequence[Task], target: LoadedModel, draft: LoadedModel, lookahead_tokens: int, path: Path, name: str
) -> Iterator[dict[str, Any]]:
    """Append the tasks that a file lacks, and yield the row of each task; their ids are `name` and a number."""
    tokenizer = target.require_tokenizer()
    drafting, own = DraftLookahead(target, draft), SelfLookahead(target)
    known = {row["id"]: row for row in read_rows(path)}
    for number, task in enumerate(tasks):
        row = known.get(f"{name}-{number}")
        if row is None:
            titled = [
                f"{title}\n{text}" if title else text for title, text in zip(task.titles, task.passages, strict=True)
            ]
            prompt = render_chat(tokenizer, [Message("user", rag_prompt(titled, task.question, INSTRUCTION))])
            ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
            mask = torch.ones_like(ids)
            row = {"id": f"{name}-{number}", "prompt": prompt, "answer": task.answer, "tokens": ids.shape[1]}
            row["lookahead"] = drafting.draft(ids, mask, lookahead_tokens)[0].tolist()
            row["self_lookahead"] = own.draft(ids, mask, lookahead_tokens)[0].tolist()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        yield row


if __name__ == "__main__":
    main()
