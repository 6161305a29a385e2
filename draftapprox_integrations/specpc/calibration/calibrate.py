"""Calibrate a draft: find the attention heads that rank evidence first, on invented questions.

Every head is observed while the draft reads invented passages and questions (`synthetic_tasks`), the way
`CalibratedHeadsScorer` will use it. A head is good if it ranks the sentences of the evidence first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ...models.fingerprint import fingerprint
from ...models.loading import LoadedModel
from ..scoring.heads import HeadSet
from ..scoring.per_passage import CalibratedHeadsScorer
from ..scoring.reduction import mean_scores
from ..text.segmentation import Passage, assign_tokens, sentences
from .synthetic_tasks import Task, make_tasks

# scores [heads, sentences] of one task, and the indices of its evidence
Measured = tuple[Tensor, list[int]]


def calibrate(
    draft: LoadedModel,
    *,
    tasks: int = 60,
    heads: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadSet:
    """Find the `heads` heads of `draft` that rank evidence best.

    Args:
        draft: The model; it needs a tokenizer.
        tasks: Number of invented questions; a third as many again are held back to report on.
        heads: Number of heads to choose.
        seed: Seed of the questions.
        progress: Called with the number of questions done and their total.

    Raises:
        InvalidInputError: the draft has no (fast) tokenizer.
        UnsupportedModelError: its weights are offloaded, or its attention cannot be observed.
    """
    key = fingerprint(draft.model)
    if key is None:
        raise UnsupportedModelError(f"{draft.name} is offloaded; calibrate it where its weights fit into memory")
    config = draft.model.config.get_text_config()
    every = [(a, b) for a in range(config.num_hidden_layers) for b in range(config.num_attention_heads)]
    scorer = CalibratedHeadsScorer(draft, HeadSet(draft.name, key, tuple(every)))
    made = make_tasks(tasks + tasks // 3, seed=seed)
    measured = []
    for done, task in enumerate(made):
        measured.append(measure(scorer, task))
        if progress is not None:
            progress(done + 1, len(made))
    training, held_back = measured[:tasks], measured[tasks:]
    chosen = choose_heads(training, heads)
    return HeadSet(
        model=draft.name,
        fingerprint=key,
        heads=tuple(every[index] for index in chosen),
        measured={
            "tasks": tasks,
            "seed": seed,
            "mean_reciprocal_rank": round(reciprocal_rank(training, chosen), 4),
            "held_back_tasks": len(held_back),
            "held_back_mean_reciprocal_rank": round(reciprocal_rank(held_back, chosen), 4),
        },
    )


def measure(scorer: CalibratedHeadsScorer, task: Task) -> Measured:
    """Scores of each head for each sentence of a task, float32 [heads, sentences], and the evidence's indices."""
    passages = [Passage(text, title) for text, title in zip(task.passages, task.titles, strict=True)]
    per_head, token_spans, _ = scorer.score_heads(task.question, passages)
    values, evidence, before = [], [], 0
    for index, (text, tokens, rows) in enumerate(zip(task.passages, token_spans, per_head, strict=True)):
        spans = sentences(text)
        owners = torch.tensor(assign_tokens(spans, tokens), dtype=torch.long)
        values.append(torch.stack([mean_scores(row, owners, len(spans)) for row in rows]))
        for passage, (start, end) in task.evidence:
            if passage == index:
                evidence += [before + i for i, (a, b) in enumerate(spans) if a < end and b > start]
        before += len(spans)
    return torch.cat(values, dim=1), evidence


def reciprocal_rank(measured: Sequence[Measured], heads: Sequence[int]) -> float:
    """Mean over tasks and their evidence of 1 / rank, by the sum of the scores of `heads`."""
    found = []
    for values, evidence in measured:
        total = values[list(heads)].sum(dim=0)
        ranks = (total[None] >= total[evidence][:, None]).sum(dim=1)  # ties get the last rank
        found.append(float((1 / ranks.float()).mean()))
    return sum(found) / len(found)


def choose_heads(measured: Sequence[Measured], count: int) -> list[int]:
    """Indices of the `count` heads with the highest reciprocal rank, best first; fewer if there are fewer heads.

    Heads that complement each other did better here and worse on other questions (docs/LOG.md).
    """
    alone = [reciprocal_rank(measured, [head]) for head in range(measured[0][0].shape[0])]
    return sorted(range(len(alone)), key=lambda head: -alone[head])[:count]
