"""A forked child works, whatever the parent's other threads were doing: of threads it inherits only the locks."""

import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

import draftapprox_integrations
from draftapprox_integrations import LoadedModel, PassageStore, SpecKV, SpecKVConfig, SpecPC, load_model
from draftapprox_integrations.engine.registry import shared_engine
from draftapprox_integrations.models import locks
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.models.locks import ForkSafeLock
from draftapprox_integrations.specpc.scoring.heads import HeadSet
from tests.conftest import GOLDEN, tiny_llama

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
TIGHT = SpecKVConfig(max_capacity_prompt=24, window_size=8, lookahead_tokens=6)
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. " * 3
PASSAGES = ["The mill was built in 1821. It is small.", "The bridge was opened in 1932. It is red."]


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns in a forked child. One that waits for ever is ended by an alarm."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(120)
            torch.set_num_threads(1)  # OpenMP's threads are not forked
            os.write(writer, work().encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child waited for ever"
    return result


@contextmanager
def held_by_another_thread(*held: Any) -> Iterator[None]:
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in held:
                stack.enter_context(lock)
            ready.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


def all_locks() -> list[Any]:
    """Each lock of this process that the package made, and those that Python 3.11 has in cached properties."""
    cached = [value for cls in locks._classes for value in vars(cls).values() if isinstance(value, cached_property)]
    return [*locks._locks, *(value.lock for value in cached if hasattr(value, "lock"))]


def test_a_child_uses_everything_while_all_locks_are_held_in_the_parent(
    pair: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    target, draft = pair
    engine, path = SpecKV(target, draft, TIGHT), str(GOLDEN / "models" / "llama_target")
    heads = HeadSet("tiny", str(fingerprint(draft.model)), ((1, 0),))
    store = PassageStore(tmp_path / "store.db")
    compressor = SpecPC(draft, scorer="heads", heads=heads, store=store)
    loaded = load_model(path)
    expected = repr(engine.generate(LONG, max_new_tokens=5)[0].token_ids)
    assert locks._locks

    def work() -> str:
        found = repr(engine.generate(LONG, max_new_tokens=5)[0].token_ids)
        assert "".join(engine.stream(LONG, max_new_tokens=5)) == engine.generate(LONG, max_new_tokens=5)[0].text
        assert load_model(path) is loaded
        assert shared_engine(target, draft, TIGHT).generate(LONG, max_new_tokens=1)
        assert attention_view(tiny_llama()) is not None
        assert compressor.ingest(PASSAGES) > 0
        assert compressor.compress(PASSAGES, "When was the bridge opened?", max_tokens=12).tokens_after > 0
        assert store.stats().passages > 0
        return found

    with held_by_another_thread(*all_locks()):
        assert in_child(work) == expected
    assert repr(engine.generate(LONG, max_new_tokens=5)[0].token_ids) == expected


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_lock_is_free_in_the_child_unless_the_forking_thread_holds_it(reentrant: bool) -> None:
    mine, others = ForkSafeLock(reentrant=reentrant), ForkSafeLock(reentrant=reentrant)

    def work() -> str:
        with others:
            return f"{mine.locked()} {others.locked()}"

    with mine, held_by_another_thread(others):
        assert in_child(work) == "True True"
        assert mine.locked()
        assert others.locked()
    assert not mine.locked()
    assert not others.locked()


def test_the_forking_thread_leaves_its_own_lock_in_the_child() -> None:
    lock = ForkSafeLock()

    def work() -> str:
        lock.__exit__()
        with lock:
            return "taken again"

    with lock:
        assert in_child(work) == "taken again"


def test_every_lock_of_the_package_is_one_that_a_child_can_take() -> None:
    root = Path(draftapprox_integrations.__file__).parent
    plain = re.compile(r"(?<!asyncio\.)\b(R?Lock|Condition|Semaphore|Barrier)\(")  # a loop is never taken over
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if plain.search(path.read_text())}
    # The engine's queue drops its threads' work after a fork, and renews its lock with it.
    assert found == {"models/locks.py", "engine/scheduler.py"}
    cached = {str(path.relative_to(root)) for path in root.rglob("*.py") if "@cached_property" in path.read_text()}
    assert cached == {cls.__module__.partition(".")[2].replace(".", "/") + ".py" for cls in locks._classes}
