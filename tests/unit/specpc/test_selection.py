from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.selection import (
    first_occurrences,
    pool_scores,
    rank_scores,
    select_tokens,
    with_neighbors,
)

scores = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float32))


def naive_pool(values: Any, kind: Any, kernel: Any) -> Any:
    if kind is None:
        return list(values)
    left = (kernel - 1) // 2
    padded = [0.0] * left + list(values) + [0.0] * (kernel - 1 - left)
    windows = [padded[i : i + kernel] for i in range(len(values))]
    return [max(w) if kind == "max" else sum(w) / kernel for w in windows]


@given(scores, st.sampled_from(["max", "avg", "mean", None]), st.integers(1, 12))
def test_pooling_equals_a_loop(values: Any, kind: Any, kernel: Any) -> None:
    expected = torch.tensor(naive_pool(values.tolist(), kind, kernel), dtype=torch.float32)
    torch.testing.assert_close(pool_scores(values, kind, kernel), expected)


def naive_neighbors(ranked: Any, neighbor_tokens: Any, tokens: Any) -> Any:
    if neighbor_tokens == 0:
        return list(dict.fromkeys(ranked))
    reach = (neighbor_tokens - 1) // 2
    offsets = sorted(range(-reach, neighbor_tokens - reach), key=lambda o: (abs(o), o))
    return list(dict.fromkeys(min(max(p + o, 0), tokens - 1) for p in ranked for o in offsets))


@given(scores, st.integers(0, 9))
def test_neighbors_equal_a_loop(values: Any, neighbor_tokens: Any) -> None:
    ranked = rank_scores(values)
    expected = naive_neighbors(ranked.tolist(), neighbor_tokens, len(values))
    assert with_neighbors(ranked, neighbor_tokens, len(values)).tolist() == expected


@given(st.lists(st.integers(0, 15), max_size=60))
def test_first_occurrences_equal_dict_fromkeys(positions: Any) -> None:
    found = first_occurrences(torch.tensor(positions, dtype=torch.long), 16)
    assert found.tolist() == list(dict.fromkeys(positions))


@given(scores, st.data())
def test_selection_keeps_capacity_window_and_protected(values: Any, data: Any) -> None:
    tokens = len(values)
    capacity = data.draw(st.integers(1, tokens + 3))
    window = data.draw(st.integers(1, min(capacity, tokens)))
    spare = max(0, capacity - window)
    protected = torch.zeros(tokens, dtype=torch.bool)
    protected[data.draw(st.lists(st.integers(0, tokens - 1), max_size=spare))] = True
    kept = select_tokens(values, capacity, window, data.draw(st.integers(0, 5)), protected).tolist()
    assert len(kept) == min(capacity, tokens)
    assert kept == sorted(set(kept))
    assert set(range(tokens - window, tokens)) <= set(kept)
    assert set(protected.nonzero().flatten().tolist()) <= set(kept)


@given(scores, st.data())
def test_without_neighbors_no_dropped_token_beats_a_kept_one(values: Any, data: Any) -> None:
    capacity = data.draw(st.integers(1, len(values)))
    kept = select_tokens(values, capacity, 1, 0).tolist()
    inside = [values[i].item() for i in kept if i != len(values) - 1]
    outside = [values[i].item() for i in range(len(values)) if i not in kept]
    assert not inside or not outside or min(inside) >= max(outside)
