"""Find the heads of a draft whose attention lands on the evidence, on questions that make themselves.

Every head is listened to while the draft reads invented passages and questions (`synthetic`), the way `PassageReader`
will use it. A head is good if it ranks the evidence's sentences first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ...models.attention import attention_view
from ...models.loading import LoadedModel
from ..scoring.heads import HeadSet, fingerprint
from ..scoring.per_passage import PassageReader
from ..scoring.prompt import PromptBuilder
from ..text.ranking import sentence_scores
from ..text.segmentation import sentences, unit_of_tokens
from .synthetic_tasks import Task, make_tasks

# values [heads, sentences] of one task, and the places of its evidence
Measured = tuple[Tensor, list[int]]


def calibrate(
    draft: LoadedModel,
    *,
    tasks: int = 60,
    heads: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadSet:
    """The `heads` heads of `draft` that rank evidence best.

    Args:
        draft: The model; it needs a tokenizer.
        tasks: How many questions to make up; a third of them again is held back to report on.
        heads: How many to choose.
        seed: Of the questions.
        progress: Called with the questions done and their number.

    Raises:
        InvalidInputError: the draft has no (fast) tokenizer.
        UnsupportedModelError: its weights are not in memory, or its attention cannot be observed.
    """
    key = fingerprint(draft.model)
    if key is None:
        raise UnsupportedModelError(f"{draft.name} is offloaded; calibrate it where its weights fit into memory")
    view = attention_view(draft.model)
    config = view.config.get_text_config()
    every = [(a, b) for a in range(config.num_hidden_layers) for b in range(config.num_attention_heads)]
    reader = PassageReader(draft, view, PromptBuilder(draft), HeadSet(draft.name, key, tuple(every)))
    made = make_tasks(tasks + tasks // 3, seed=seed)
    measured = []
    for done, task in enumerate(made):
        measured.append(measure(reader, task))
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


def measure(reader: PassageReader, task: Task) -> Measured:
    """What each head says of each sentence of a task."""
    encoded = reader.builder.reader.encode(task.passages)
    found, _ = reader.head_scores(encoded, task.titles, task.question)
    values, evidence, before = [], [], 0
    for index, (text, tokens, scores) in enumerate(zip(task.passages, encoded, found, strict=True)):
        spans = sentences(text)
        owners = torch.tensor(unit_of_tokens(spans, tokens.spans), dtype=torch.long)
        values.append(torch.stack([sentence_scores(row, owners, len(spans)) for row in scores]))
        for passage, (start, end) in task.evidence:
            if passage == index:
                evidence += [before + i for i, (a, b) in enumerate(spans) if a < end and b > start]
        before += len(spans)
    return torch.cat(values, dim=1), evidence


def reciprocal_rank(measured: Sequence[Measured], heads: Sequence[int]) -> float:
    """Mean over tasks and their evidence of 1 / rank, by the sum of some heads' scores."""
    found = []
    for values, evidence in measured:
        total = values[list(heads)].sum(dim=0)
        ranks = (total[None] >= total[evidence][:, None]).sum(dim=1)  # among equals the last: ties are no success
        found.append(float((1 / ranks.float()).mean()))
    return sum(found) / len(found)


def choose_heads(measured: Sequence[Measured], count: int) -> list[int]:
    """Indices of the `count` heads that are best by themselves, best first; fewer if there are not so many.

    Choosing those that complement each other best did better here and worse on other questions (docs/LOG.md).
    """
    alone = [reciprocal_rank(measured, [head]) for head in range(measured[0][0].shape[0])]
    return sorted(range(len(alone)), key=lambda head: -alone[head])[:count]
