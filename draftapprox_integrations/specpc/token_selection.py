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
        config: `max_capacity_prompt` positions of each row are kept, or all of a shorter one; then the draft does not
            run unless `scores` is asked for.
        ids: LongTensor [batch, tokens].
        mask: bool [batch, tokens], False at padding.
        protect: bool [batch, tokens]: positions that stay.

    Raises:
        BudgetError: window and protected positions exceed the capacity.
        ScoringError: the draft produced NaN.
    """
    capacity, window = config.max_capacity_prompt, config.resolved_window()
    indices = [row.nonzero().flatten() for row in mask]  # the real positions of each row, then the kept ones
    places = list(indices)
    long_rows = [row for row, place in enumerate(places) if len(place) > capacity]

    def read(rows: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        return _read_rows(draft, view, config, ids, places, rows)

    found = read(long_rows) if long_rows else {}
    for row in long_rows:
        scores, protected = found[row][0][places[row]], protect[row][places[row]]
        needed = int(protected[:-window].sum()) + window
        if needed > capacity:
            raise BudgetError(
                f"the window and the protected positions need {needed} tokens, max_capacity_prompt is {capacity}. "
                f"Raise it to at least {needed} or protect less."
            )
        pooled = pool_scores(scores, config.pool_type, config.kernel_size)
        keep = select_tokens(pooled, capacity, window, config.resolved_neighbors(), protected)
        indices[row] = places[row][keep]
    return Selection(indices, ids.shape[1], found, read)


def _read_rows(
    draft: LoadedModel, view: PreTrainedModel, config: SpecPCConfig, ids: Tensor, places: list[Tensor], rows: list[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """For each of `rows` its scores [tokens] and lookahead. Rows longer than the window share a batch."""
    window = config.resolved_window()
    together = [row for row in rows if len(places[row]) > window]
    batches = [[row] for row in rows if len(places[row]) <= window]
    if together:
        batches.append(together)
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for batch_rows in batches:
        batch, mask = pad_left([ids[row][places[row]].tolist() for row in batch_rows])
        longest = batch.shape[1]
        with draft.lock:
            found = read_importance(view, batch, mask, min(window, longest), config)
        assert found.lookahead_ids is not None
        for index, row in enumerate(batch_rows):
            scores = torch.zeros(ids.shape[1])
            scores[places[row]] = found.scores[index, longest - len(places[row]) :]
            results[row] = (scores, found.lookahead_ids[index])
    return results
