"""Fit a relevance model: which signals tell evidence from the rest, on questions whose evidence is known."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ...errors import InvalidInputError
from ...models.loading import LoadedModel
from ..scoring.embedder import Embedder
from ..scoring.heads import HeadSet
from ..scoring.per_passage import CalibratedHeadsScorer
from ..scoring.relevance import Network, RelevanceModel, RelevanceModels, RelevanceScorer
from ..scoring.scorer import Scorer
from ..scoring.signals import Signals
from ..text.segmentation import Passage, segment
from .questions import read_tasks
from .synthetic_tasks import SHAPES, Task, make_tasks

HIDDEN = 16
LEAST_QUESTIONS = 30
_INVENTED = 0.3  # weight of invented questions beside a user's
_STEPS, _BATCH, _LEARNING_RATE, _DECAY = 800, 64, 0.01, 0.6
_ABSOLUTE = 3.0  # weight of the loss that makes outputs comparable between questions, beside that of their order
_FOLDS = 3
_WHOLE, _FEW, _MOST_OTHERS = 0.7, 0.2, 4  # shares of questions, and passages beside the evidence where these are few
_RETRIEVED = 0.3
_LEAST_SCALE = 0.05
_SEPARABLE = 1e-3  # keeps the temperature from 0 where evidence was told without a mistake

# Per passage its retriever score, for a question.
RetrieverScores = Callable[[str, Sequence[Passage]], Sequence[float]]


@dataclass(frozen=True)
class Example:
    """A question.

    Attributes:
        signals: Its signals.
        labels: float32 [all sentences], 1 for evidence.
        weight: Its weight among others.
    """

    signals: Signals
    labels: Tensor
    weight: float = 1.0


def read_questions(path: str | os.PathLike[str]) -> list[Task]:
    """As `read_tasks`.

    Raises:
        InvalidInputError: fewer than `LEAST_QUESTIONS`.
    """
    tasks = read_tasks(Path(path))
    if len(tasks) < LEAST_QUESTIONS:
        raise InvalidInputError(
            f"{path} holds {len(tasks)} questions whose evidence stands in their passages; at least {LEAST_QUESTIONS} "
            "are needed to fit weights to them"
        )
    return tasks


def fit_to(
    draft: LoadedModel,
    heads: HeadSet,
    tasks: Sequence[Task],
    embedder: Embedder | Scorer | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadSet:
    """`heads` with relevance models for the kind of a user's questions, from the package's and with invented ones.

    Args:
        draft: The model.
        heads: Its calibrated heads.
        tasks: The user's questions.
        embedder: What takes part; None for none.
        seed: Seed of the invented questions and of the fit.
        progress: Called with the number of questions read and their total.
    """
    packaged = RelevanceModels.packaged()
    scorer = RelevanceScorer(CalibratedHeadsScorer(draft, heads), embedder, packaged)
    invented = make_tasks(max(LEAST_QUESTIONS, len(tasks) // 3), seed=seed, shapes=SHAPES)
    total = len(tasks) + len(invented)

    def count(before: int) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    examples = make_examples(scorer, tasks, progress=count(0))
    others = make_examples(scorer, invented, progress=count(len(tasks)))
    examples += [replace(one, weight=one.weight * _INVENTED) for one in others]
    fitted = fit_relevance(examples, start=scorer.model, seed=seed)
    return replace(heads, relevance=packaged.replaced("heads", scorer.semantic, fitted).content())


def make_examples(
    scorer: RelevanceScorer,
    tasks: Sequence[Task],
    *,
    retriever: RetrieverScores | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """Read questions and note their signals; the weights of all together are 1.

    Users retrieve few passages or many, and not always one with the answer. So seven in ten questions are read with all
    of their passages, two in ten with the evidence among few, and one in ten without the evidence.

    Args:
        scorer: Has the draft, and the embedder if one takes part.
        tasks: The questions.
        retriever: Scores the passages of three questions in ten, as those of a user may come with scores or without.
        seed: Seed of these choices.
        progress: Called with the number of questions done and their total.
    """
    rng, made = random.Random(seed), []
    for done, whole in enumerate(tasks):
        task = _varied(whole, rng)
        passages = [Passage(text, title) for text, title in zip(task.passages, task.titles, strict=True)]
        if retriever is not None and rng.random() < _RETRIEVED:
            scores = retriever(task.question, passages)
            passages = [replace(one, retriever_score=float(s)) for one, s in zip(passages, scores, strict=True)]
        sentences = segment(task.passages)
        signals, _ = scorer.signals(task.question, passages, sentences)
        if signals is not None:
            labels = [
                any(p == one.passage and one.start < end and one.end > start for p, (start, end) in task.evidence)
                for group in sentences
                for one in group
            ]
            made.append(Example(signals, torch.tensor(labels, dtype=torch.float32), 1 / len(tasks)))
        if progress is not None:
            progress(done + 1, len(tasks))
    return made


def _varied(task: Task, rng: random.Random) -> Task:
    """A question with all of its passages, with few of them, or without those of its evidence."""
    gold = sorted({passage for passage, _ in task.evidence})
    others = [index for index in range(len(task.passages)) if index not in gold]
    drawn = rng.random()
    if drawn < _WHOLE or not gold or len(others) < 2:
        return task
    if drawn < _WHOLE + _FEW:
        others = rng.sample(others, rng.randint(1, min(_MOST_OTHERS, len(others))))
    else:
        gold = []
    kept = sorted([*gold, *others])
    return replace(
        task,
        titles=[task.titles[i] for i in kept],
        passages=[task.passages[i] for i in kept],
        evidence=[(kept.index(passage), span) for passage, span in task.evidence if passage in kept],
    )


def fit_relevance(
    examples: Sequence[Example], *, start: RelevanceModel | None = None, hidden: int = HIDDEN, seed: int = 0
) -> RelevanceModel:
    """Fit both looks, and on questions left out of them the temperature and bias of the probabilities.

    Args:
        examples: The questions, all with signals of the same names.
        start: A model to begin from, of the same signals; what it was fitted on stays in its weights in part.
        hidden: Hidden units of the second look.
        seed: Seed of the order of questions and of the first weights.
    """
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    logits, labels, weights = [], [], []
    for fold in range(_FOLDS):
        fitted = _fit([e for i, e in enumerate(shuffled) if i % _FOLDS != fold], start, hidden, seed)
        for example in shuffled[fold::_FOLDS]:
            logits.append(fitted.logits(example.signals))
            labels.append(example.labels)
            weights.append(torch.full_like(example.labels, example.weight / len(example.labels)))
    return _fit(shuffled, start, hidden, seed).calibrated(*_probabilities(logits, labels, weights))


def _fit(examples: Sequence[Example], start: RelevanceModel | None, hidden: int, seed: int) -> RelevanceModel:
    first = _train(examples, [e.signals.first for e in examples], 0, seed, None if start is None else start.first)
    seen = [torch.cat([e.signals.first, e.signals.second(first(e.signals.first))], dim=1) for e in examples]
    second = _train(examples, seen, hidden, seed, None if start is None else start.second)
    known = examples[0].signals
    return RelevanceModel(known.names, known.second_names, first, second)


def _train(
    examples: Sequence[Example], signals: Sequence[Tensor], hidden: int, seed: int, start: Network | None
) -> Network:
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.utils.rnn.pad_sequence(list(signals), batch_first=True)
    y = torch.nn.utils.rnn.pad_sequence([e.labels for e in examples], batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(e.labels) for e in examples], batch_first=True)
    weights = torch.tensor([e.weight for e in examples])
    count = x.shape[2]
    if start is None:
        flat = torch.cat(list(signals))
        shift, scale = flat.mean(dim=0), flat.std(dim=0).clamp(min=_LEAST_SCALE)
        first = torch.randn(hidden, count + 1, generator=generator) / (count + 1) ** 0.5
        start = Network(shift, scale, torch.zeros(count), first, 0.05 * torch.randn(hidden, generator=generator))
    moved = [value.clone().requires_grad_() for value in (start.weight, start.hidden, start.out)]
    bias = torch.zeros((), requires_grad=True)  # takes part in the fit only; probabilities get one of their own
    optimizer = torch.optim.AdamW([*moved, bias], lr=_LEARNING_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(examples), (_BATCH,), generator=generator)
        network = Network(start.shift, start.scale, *moved)
        loss = _loss(network(x[batch]) + bias, y[batch], real[batch], weights[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Network(start.shift, start.scale, *(value.detach() for value in moved))


def _loss(outputs: Tensor, labels: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Each piece of evidence against all other sentences of its question, and every sentence by itself."""
    outputs = outputs.masked_fill(real == 0, -1e9)
    others = outputs.masked_fill(labels > 0, -1e9).logsumexp(dim=1, keepdim=True)
    order = ((torch.logaddexp(outputs, others) - outputs) * labels).sum(dim=1) / labels.sum(dim=1).clamp(min=1)
    each = binary_cross_entropy_with_logits(outputs.clamp(min=-30), labels, reduction="none")
    absolute = (each * real).sum(dim=1) / real.sum(dim=1)
    return ((order + _ABSOLUTE * absolute) * weights).sum() / weights.sum()


def _probabilities(
    logits: Sequence[Tensor], labels: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[float, float]:
    """Temperature and bias with the highest likelihood (Platt scaling)."""
    x, y, w = torch.cat(list(logits)), torch.cat(list(labels)), torch.cat(list(weights))
    inverse, bias = torch.ones((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(x * inverse + bias, y, weight=w / w.sum(), reduction="sum")
        loss = loss + _SEPARABLE * (inverse - 1) ** 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return 1 / max(float(inverse.detach()), 1e-3), float(bias.detach())
