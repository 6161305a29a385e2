"""The store of dropped text: limits of size and age, use from many threads."""

import threading
from typing import Any

import pytest

from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.serving.dropped import DroppedPiece, DroppedStore, dropped_content


def pieces(*texts: Any) -> Any:
    return [DroppedPiece(text, start=index) for index, text in enumerate(texts)]


def test_what_was_put_can_be_asked_for() -> None:
    store = DroppedStore(10_000, 60)
    first, second = store.put(pieces("a", "ü\ud800")), store.put(pieces("c"))
    assert first != second
    assert store.get(first) == pieces("a", "ü\ud800")
    assert store.get(second) == pieces("c")
    assert store.get("dropped-unknown") is None
    assert dropped_content(first, pieces("a", "b"))["text"] == "a\nb"


def test_age() -> None:
    now = [0.0]
    store = DroppedStore(10_000, 60, clock=lambda: now[0])
    asked, unasked = store.put(pieces("a")), store.put(pieces("b"))
    now[0] = 50
    assert store.get(asked)
    now[0] = 70
    assert store.get(asked)  # asked for 20 s ago
    assert store.get(unasked) is None
    assert len(store) == 1
    now[0] = 131
    assert store.get(asked) is None
    assert (len(store), store.bytes) == (0, 0)


def test_size() -> None:
    store = DroppedStore(2_000, 60)
    keys = [store.put(pieces("x" * 400)) for _ in range(3)]
    assert store.get(keys[0])  # now the one that was used last
    keys.append(store.put(pieces("y" * 400)))
    assert [store.get(key) is not None for key in keys] == [True, False, True, True]
    assert store.get(store.put(pieces("z" * 5_000))) is None  # larger than the store; the others stay
    assert len(store) == 3
    assert store.bytes <= 2_000


def test_many_threads() -> None:
    store = DroppedStore(5_000, 60)
    wrong = []

    def work(name: Any) -> None:
        for index in range(200):
            found = store.get(store.put(pieces(f"{name} {index}")))
            if found is not None and found != pieces(f"{name} {index}"):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < store.bytes <= 5_000


@pytest.mark.parametrize("limits", [(0, 60), (10, 0), (10, float("nan"))])
def test_limits(limits: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_bytes"):
        DroppedStore(*limits)
