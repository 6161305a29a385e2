from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.text import Packer, Sentence, segment

words = st.sampled_from(["one two.", "Three.", "Four five six seven.", "Eight nine."])
passages = st.lists(st.lists(words, max_size=5).map(" ".join), min_size=1, max_size=4)


def by_words(texts: Any) -> Any:
    return [len(text.split()) for text in texts]


def best_prefix(order: Any, texts: Any, budget: Any) -> Any:
    """Longest run of units that fits, found by trying every length."""
    best = 0
    for length in range(len(order) + 1):
        chosen = order[:length]
        if sum(len(texts[u.passage][u.start : u.end].split()) for u in chosen) <= budget:
            best = length
    return best


@given(passages, st.integers(1, 30), st.randoms(use_true_random=False))
def test_packing_equals_trying_every_length(texts: Any, budget: Any, random: Any) -> None:
    order = [sentence for group in segment(texts) for sentence in group]
    random.shuffle(order)
    packed, fitted = Packer(texts, by_words(texts), " ", by_words).fill(order, budget)
    assert fitted == best_prefix(order, texts, budget)
    assert packed.total == sum(by_words(packed.texts)) <= budget
    kept = {(u.passage, c) for u in order[:fitted] for c in range(u.start, u.end)}
    assert kept <= {(i, c) for i, spans in enumerate(packed.spans) for a, b in spans for c in range(a, b)}
    if fitted < len(order):
        room = budget - packed.total
        left = [u for u in order[fitted:] if not any(a <= u.start < b for a, b in packed.spans[u.passage])]
        assert all(len(texts[u.passage][u.start : u.end].split()) > room for u in left)


def test_separators_never_make_a_passage_longer() -> None:
    text = "a b c d e"
    units = [Sentence(0, i, i + 1, text[i]) for i in range(0, 9, 4)]  # a, c, e
    packed, _ = Packer([text], [5], " [...] ", by_words).fill(units, 5)
    assert packed.texts == [text]
    assert packed.spans == [[(0, 9)]]
