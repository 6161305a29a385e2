"""Selection of KV pairs: equal to loops over Python lists, alone and in a padded batch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations.speckv.scores import select_adaptive, select_uniform


def naive(pooled: Any, capacity: Any, window: Any, floor_alpha: Any) -> Any:
    """Per head the kept positions of one row without padding, by loops."""
    heads, before = len(pooled), len(pooled[0])
    floor = math.ceil(round(floor_alpha * (capacity - window), 6))
    kept = [set(sorted(range(before), key=lambda p: -pooled[h][p])[:floor]) for h in range(heads)]
    others = [(h, p) for h in range(heads) for p in range(before) if p not in kept[h]]
    for h, p in sorted(others, key=lambda pair: -pooled[pair[0]][pair[1]])[: heads * (capacity - window - floor)]:
        kept[h].add(p)
    return [sorted(kept[h] | set(range(before, before + window))) for h in range(heads)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_selection_equals_a_loop_alone_and_in_a_padded_batch(data: Any) -> None:
    heads, window = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(2, 24), min_size=1, max_size=4))
    longest = max(*lengths, window + 2)
    capacity = data.draw(st.integers(window, longest - 2))
    alpha = data.draw(st.sampled_from([0, 0.07, 0.2, 0.5, 0.99, 1]))
    levels = data.draw(st.sampled_from([2, 5, 1000]))  # few levels: many ties
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    pooled = torch.randint(0, levels, (len(lengths), heads, longest - window - 1), generator=generator).float()
    columns = torch.arange(longest - 1)
    for row, n in enumerate(lengths):
        pooled[row, :, : max(0, longest - n)] = -torch.inf
    keep = select_adaptive(pooled, torch.tensor(lengths), capacity, window, alpha)
    assert (keep.dtype, keep.shape) == (torch.bool, (len(lengths), heads, longest - 1))
    uniform = select_uniform(pooled, torch.tensor(lengths), capacity, window)
    for row, n in enumerate(lengths):
        pad = longest - n
        found = [(columns[keep[row, head]] - pad).tolist() for head in range(heads)]
        if n - 1 <= capacity:
            assert found == [list(range(n - 1))] * heads
            continue
        assert found == naive(pooled[row, :, pad:].tolist(), capacity, window, alpha)
        assert sum(map(len, found)) == capacity * heads
        assert all(len(positions) - window >= alpha * (capacity - window) - 1e-6 for positions in found)
        assert all(set(range(n - 1 - window, n - 1)) <= set(positions) for positions in found)
        if alpha == 1:
            assert found == (uniform[row] - pad).tolist()
        alone = select_adaptive(pooled[row : row + 1, :, pad:], torch.tensor([n]), capacity, window, alpha)
        assert torch.equal(alone[0], keep[row, :, pad:])


@pytest.mark.parametrize(("alpha", "beyond", "floor"), [(0.2, 6, 2), (0.07, 100, 7), (0, 9, 0), (0.01, 9, 1)])
def test_a_head_nothing_attends_to_gets_the_floor(alpha: float, beyond: int, floor: int) -> None:
    pooled = torch.stack([torch.zeros(300), torch.ones(300)])[None]
    keep = select_adaptive(pooled, torch.tensor([304]), beyond + 3, 3, alpha)
    assert keep.sum(-1).tolist() == [[floor + 3, 2 * beyond - floor + 3]]
