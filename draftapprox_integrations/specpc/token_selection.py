"""SpecPC on token ids, as in the paper: which positions of each prompt to keep."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import SpecPCConfig
from ..errors import BudgetError
from ..models.loading import LoadedModel, pad_left
from ..results import Selection
from .scoring.attention_scores import read_importance
from .selection import pool_scores, select_tokens


def choose_positions(
    draft: LoadedModel, view: PreTrainedModel, config: SpecPCConfig, ids: Tensor, mask: Tensor, protect: Tensor
) -> Selection:
    """`SpecPC.select` for checked input.

    Args:
        draft, view: The model and its attention view.
        config: `max_capacity_prompt` positions of each row are kept, or all of a shorter one; then the draft runs only
            if `scores` is accessed.
        ids: LongTensor [batch, tokens].
        mask: bool [batch, tokens], False at padding.
        protect: bool [batch, tokens], True at positions that must be kept.

    Raises:
        BudgetError: window and protected positions exceed the capacity.
        ScoringError: the draft produced NaN.
    """
    capacity, window = config.max_capacity_prompt, config.resolved_window()
    real = [row.nonzero().flatten() for row in mask]  # positions without padding
    kept = list(real)
    long_rows = [row for row, positions in enumerate(real) if len(positions) > capacity]

    def score_rows(rows: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        return _score_rows(draft, view, config, ids, real, rows)

    scored = score_rows(long_rows) if long_rows else {}
    for row in long_rows:
        scores, protected = scored[row][0][real[row]], protect[row][real[row]]
        needed = int(protected[:-window].sum()) + window
        if needed > capacity:
            raise BudgetError(
                f"the window and the protected positions need {needed} tokens, max_capacity_prompt is {capacity}. "
                f"Raise it to at least {needed} or protect less."
            )
        pooled = pool_scores(scores, config.pool_type, config.kernel_size)
        keep = select_tokens(pooled, capacity, window, config.resolved_neighbors(), protected)
        kept[row] = real[row][keep]
    return Selection(kept, ids.shape[1], scored, score_rows)


def _score_rows(
    draft: LoadedModel, view: PreTrainedModel, config: SpecPCConfig, ids: Tensor, real: list[Tensor], rows: list[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Scores float32 [tokens] and lookahead ids of each of `rows`. Rows longer than the window share a batch."""
    window = config.resolved_window()
    together = [row for row in rows if len(real[row]) > window]
    batches = [[row] for row in rows if len(real[row]) <= window]
    if together:
        batches.append(together)
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for batch_rows in batches:
        batch, mask = pad_left([ids[row][real[row]].tolist() for row in batch_rows])
        longest = batch.shape[1]
        with draft.lock:
            found = read_importance(view, batch, mask, min(window, longest), config)
        assert found.lookahead_ids is not None
        for index, row in enumerate(batch_rows):
            scores = torch.zeros(ids.shape[1])
            scores[real[row]] = found.scores[index, longest - len(real[row]) :]
            results[row] = (scores, found.lookahead_ids[index])
    return results
