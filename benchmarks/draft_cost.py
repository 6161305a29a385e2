"""Cost of the draft: joint attention, calibrated heads without a store, calibrated heads with a filled store.

    python -m benchmarks.draft_cost

Random words. The table shows medians of interleaved repeats, as shares of a plain forward pass of the draft over the
same passages and question in one prompt. "joint": the paper's scores. "cold": no passage is in the store. "warm": all
are, in memory or in a file.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from draftapprox_integrations import LoadedModel, PassageStore, load_model
from draftapprox_integrations.specpc.scoring import CalibratedHeadsScorer, JointAttentionScorer
from draftapprox_integrations.specpc.text import Passage

from .common import machine, table

QUESTION = "In which year was the old stone bridge across the northern river opened to the public?"
WAYS = ("forward", "joint", "cold", "warm, memory", "warm, file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="default")
    parser.add_argument("--shapes", nargs="+", default=["12x512", "12x200"], help="passages x tokens per passage")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    draft = load_model(args.draft)
    joint = JointAttentionScorer(draft)
    heads = CalibratedHeadsScorer(draft).heads
    tokenizer = draft.require_tokenizer()
    lines = []
    size = 0.0
    for shape in args.shapes:
        count, length = (int(number) for number in shape.split("x"))
        rng = random.Random(0)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory() as folder:
            for repeat in range(args.repeats + 1):  # the first round warms up
                ids = [[rng.randrange(1000, 40_000) for _ in range(length)] for _ in range(count)]
                passages = [Passage(str(tokenizer.decode(row))) for row in ids]
                encoded = joint.prompts.encoder.encode([passage.text for passage in passages])
                store = PassageStore(Path(folder) / f"{repeat}.db", memory_bytes=0)
                memory = CalibratedHeadsScorer(draft, store=PassageStore())
                file = CalibratedHeadsScorer(draft, store=store)
                (prompt,) = joint.prompts.build(encoded, joint.prompts.headers([None] * count), QUESTION)
                times["forward"].append(_timed(lambda: _forward(draft, prompt.ids)))  # noqa: B023 - called at once
                runs = [("joint", joint), ("cold", file), ("warm, file", file), ("", memory), ("warm, memory", memory)]
                for way, scorer in runs:
                    seconds = _timed(lambda: scorer.score_tokens(QUESTION, passages))  # noqa: B023 - called at once
                    if way:
                        times[way].append(seconds)
                stats = store.stats()
                size = stats.bytes / sum(len(row.ids) for row in encoded)
                store.close()
        median = {way: statistics.median(found[1:]) for way, found in times.items()}
        ratios = [
            f"{statistics.median(a / b for a, b in zip(times[way][1:], times['forward'][1:], strict=True)):.3f}"
            for way in WAYS[1:]
        ]
        lines.append([shape, f"{median['forward']:.2f} s", *ratios])
    print(machine())
    print(
        f"{draft.name} ({draft.dtype}), {len(heads.heads)} heads, the last in layer {heads.last_layer} of "
        f"{draft.model.config.get_text_config().num_hidden_layers}; {size:.0f} bytes of store per token\n"
    )
    print(table(["passages", "plain forward", *(f"{way}, of it" for way in WAYS[1:])], lines))


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def _forward(draft: LoadedModel, ids: list[int]) -> None:
    draft.model(input_ids=torch.tensor([ids], device=draft.device), use_cache=False, logits_to_keep=1)


if __name__ == "__main__":
    main()
