"""Scores of units from scores of tokens, against a loop."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.scoring.reduction import PRIOR_TOKENS, PooledMax, mean_scores
from draftapprox_integrations.specpc.selection import pool_scores

tokens = st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 4)), max_size=40)


@given(tokens)
def test_unit_scores_equal_a_loop(pairs: Any) -> None:
    scores = torch.tensor([float(score) for score, _ in pairs])
    owners = torch.tensor([owner for _, owner in pairs], dtype=torch.long)
    average = sum(scores.tolist()) / len(pairs) if pairs else 0.0
    means, highest = [], []
    for unit in range(5):
        own = [float(score) for score, owner in pairs if owner == unit]
        means.append((sum(own) + PRIOR_TOKENS * average) / (len(own) + PRIOR_TOKENS))
        highest.append(max(own, default=0.0))
    torch.testing.assert_close(mean_scores(scores, owners, 5), torch.tensor(means))
    torch.testing.assert_close(PooledMax(None, 1)(scores, owners, 5), torch.tensor(highest))


def test_scores_are_pooled_along_the_passage_before_the_maximum() -> None:
    scores, owners = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 1.0]), torch.tensor([0, 1, 2, 3, 4, 5])
    assert torch.equal(PooledMax("max", 3)(scores, owners, 6), pool_scores(scores, "max", 3))
