"""What is kept between questions: bounds, crashes, damage, many readers."""

import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations import LoadedModel, PassageStore, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.specpc.store.key_codec import Float32KeyCodec, Int8KeyCodec

pytestmark = pytest.mark.thorough


def name(number: Any) -> Any:
    return number.to_bytes(16, "big")


def value(number: Any, size: int = 1000) -> Any:
    return number.to_bytes(4, "big") * (size // 4)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 70), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_keys_survive_packing(pairs: Any, tokens: Any, width: Any, size: Any, seed: Any) -> None:
    keys = torch.randn(pairs, tokens, width, generator=torch.Generator().manual_seed(seed)) * size
    codec = Int8KeyCodec()
    found = codec.unpack(codec.pack(keys), pairs).float()
    exact = Float32KeyCodec()
    assert torch.equal(exact.unpack(exact.pack(keys), pairs), keys)
    largest = keys.abs().amax(dim=-1, keepdim=True)
    assert found.shape == keys.shape
    assert ((found - keys).abs() <= largest * (1 / 240 + 1 / 128)).all()  # half a step, and bfloat16 twice


@pytest.mark.parametrize("file", [True, False])
def test_what_was_put_is_found(tmp_path: Path, file: bool) -> None:
    store = PassageStore(tmp_path / "folder" / "p.db" if file else None)
    store.put({name(1): value(1), name(2): value(2)})
    assert store.get([name(2), name(3), name(2)]) == {name(2): value(2)}
    stats = store.stats()
    assert (stats.passages, stats.hits, stats.misses) == (2, 1, 1)
    assert stats.bytes >= 2000


def test_another_process_and_a_pickle_find_it_too(tmp_path: Path) -> None:
    store = PassageStore(tmp_path / "p.db", memory_bytes=0)
    store.put({name(1): value(1)})
    assert pickle.loads(pickle.dumps(store)).get([name(1)]) == {name(1): value(1)}
    script = f"""
from draftapprox_integrations import PassageStore
assert PassageStore({str(tmp_path / "p.db")!r}).get([{name(1)!r}]) == {{{name(1)!r}: {value(1)!r}}}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_memory_keeps_the_latest_used(tmp_path: Path) -> None:
    store = PassageStore(max_bytes=3000)
    for number in (1, 2, 3):
        store.put({name(number): value(number)})
    store.get([name(1)])
    store.put({name(4): value(4)})
    assert set(store.get([name(n) for n in (1, 2, 3, 4)])) == {name(1), name(3), name(4)}
    assert store.stats().bytes <= 3000


def test_the_file_stays_within_its_bound_and_the_latest_used_stay(tmp_path: Path) -> None:
    bound = 1 << 20
    store = PassageStore(tmp_path / "p.db", max_bytes=bound, memory_bytes=0)
    for number in range(400):
        store.put({name(number): value(number, 8000)})
        store.get([name(0)])
        assert store.stats().bytes <= bound
    assert name(0) in store.get([name(0)])
    assert set(store.get([name(n) for n in (398, 399)])) == {name(398), name(399)}
    assert not store.get([name(1)])
    store.close()
    assert (tmp_path / "p.db").stat().st_size <= 1.2 * bound


def test_a_hundred_thousand_passages(tmp_path: Path) -> None:
    store = PassageStore(tmp_path / "p.db", max_bytes=40 << 20, memory_bytes=0)
    for start in range(0, 100_000, 2000):
        store.put({name(n): value(n, 400) for n in range(start, start + 2000)})
    stats = store.stats()
    assert stats.bytes <= 40 << 20
    assert stats.passages > 40_000
    assert len(store.get([name(n) for n in range(99_000, 100_000)])) == 1000


def test_prune(tmp_path: Path) -> None:
    store = PassageStore(tmp_path / "p.db")
    store.put({name(n): value(n, 8000) for n in range(200)})
    store.get([name(7)])
    dropped = store.prune(400_000)
    assert dropped + store.stats().passages == 200
    assert store.stats().bytes <= 400_000
    assert store.get([name(7)])
    store.prune(0)
    assert store.stats().passages == 0


def test_kill_nine_loses_nothing_that_was_put(tmp_path: Path) -> None:
    script = f"""
from draftapprox_integrations import PassageStore
store = PassageStore({str(tmp_path / "p.db")!r})
for number in range(100000):
    store.put({{number.to_bytes(16, "big"): number.to_bytes(4, "big") * 2000}})
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 50:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    last = int(rest[-1]) if rest else 50
    store = PassageStore(tmp_path / "p.db")
    found = store.get([name(n) for n in range(last + 1)])
    assert found == {name(n): value(n, 8000) for n in range(last + 1)}


def test_a_damaged_value_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.db"
    PassageStore(path).put({name(1): value(1), name(2): value(2)})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE passages SET value = ? WHERE name = ?", (value(9), name(1)))
    store = PassageStore(path)
    assert store.get([name(1), name(2)]) == {name(2): value(2)}
    assert "damaged" in caplog.text
    store.put({name(1): value(1)})
    assert PassageStore(path).get([name(1)]) == {name(1): value(1)}


@pytest.mark.parametrize("damage", ["not a database at all, but long enough to be read as one " * 20, "", None])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.db"
    first = PassageStore(path, memory_bytes=0)
    first.put({name(n): value(n, 4000) for n in range(50)})
    first.close()
    if damage is None:  # a page in the middle
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 40_000)
    else:
        path.write_text(damage)
    store = PassageStore(path, memory_bytes=0)
    found = store.get([name(n) for n in range(50)])
    assert all(found[key] == value(int.from_bytes(key, "big"), 4000) for key in found)
    store.put({name(99): value(99)})
    assert store.get([name(99)]) == {name(99): value(99)}
    if damage:
        assert list(tmp_path.glob("p.db.damaged-*"))


def read_all_the_time(path: Any, seconds: Any, results: Any) -> None:
    store = PassageStore(path, memory_bytes=0)
    end, reads = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for key, found in store.get([name(n) for n in range(300)]).items():
            assert found == value(int.from_bytes(key, "big"), 2000)
        reads += 1
    results.put(reads)


def test_eight_readers_and_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    store = PassageStore(path, memory_bytes=0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by every reader
    results = context.Queue()
    readers = [context.Process(target=read_all_the_time, args=(path, 2, results)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for number in range(300):
        store.put({name(number): value(number, 2000)})
    counts = [results.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    assert min(counts) > 0
    assert len(store.get([name(n) for n in range(300)])) == 300


def test_many_threads_share_one_store(tmp_path: Path) -> None:
    store = PassageStore(tmp_path / "p.db", memory_bytes=20_000)
    failures = []

    def work(own: Any) -> None:
        try:
            for step in range(30):
                store.put({name(own * 100 + step): value(own * 100 + step)})
                assert store.get([name(own * 100 + step)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.stats().passages == 180


def test_a_pruned_file_is_smaller_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    store = PassageStore(path)
    store.put({name(n): value(n, 20_000) for n in range(200)})
    store.close()
    before = path.stat().st_size
    store.prune(400_000)
    store.close()
    assert path.stat().st_size < 600_000 < before


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    thesis, other, empty = tmp_path / "thesis.txt", tmp_path / "other.db", tmp_path / "new.db"
    thesis.write_text("Years of work. " * 50)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE accounts (name TEXT)")
    for path in (thesis, other):
        before = path.read_bytes()
        with pytest.raises(InvalidInputError, match="is not a store of passages. Name another file"):
            PassageStore(path)
        assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.db", "thesis.txt"]
    empty.touch()
    PassageStore(empty).put({name(1): value(1)})
    assert PassageStore(empty).get([name(1)])


READ_ONLY = """
import os, sys, sqlite3, logging
from draftapprox_integrations import PassageStore
from draftapprox_integrations.errors import InvalidInputError
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
for path in sys.argv[1:]:
    store = PassageStore(path)
    names = [n.to_bytes(4, "big") for n in range(3)]
    found = store.get(names)
    store.put({names[2]: b"new"})
    print(len(found), len(store.get(names)), store.stats().passages)
    try:
        store.prune(0)
    except InvalidInputError as error:
        print(error)
    store.close()
"""


def test_a_file_that_cannot_be_written_is_read() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o755)
        folders = {Path(place) / oct(mode): mode for mode in (0o755, 0o555, 0o777)}
        for folder, mode in folders.items():
            folder.mkdir()
            store = PassageStore(folder / "p.db")
            store.put({number.to_bytes(4, "big"): bytes([number]) * 9 for number in range(2)})
            store.close()
            (folder / "p.db").chmod(0o444)
            folder.chmod(mode)
        paths = [str(folder / "p.db") for folder in folders]
        done = subprocess.run([sys.executable, "-c", READ_ONLY, *paths], capture_output=True, text=True)
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no permission to write the store") == 3
    assert done.stdout.count("\n2 3 2\n") == 3  # what is new is remembered in memory
    assert done.stdout.count("cannot make the store") == 3


def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    store = PassageStore(path, memory_bytes=0)
    store.put({name(1): value(1)})
    for file in tmp_path.iterdir():
        file.unlink()
    assert store.get([name(1)]) == {}
    store.put({name(2): value(2)})
    assert set(PassageStore(path).get([name(1), name(2)])) == {name(2)}
    path.unlink()
    store.close()
    assert not path.exists()


def test_what_finds_no_room_is_counted(tmp_path: Path) -> None:
    store = PassageStore(tmp_path / "p.db", max_bytes=100_000)
    store.put({name(n): value(n, 20_000) for n in range(20)})
    stats = store.stats()
    assert stats.dropped == 20 - stats.passages > 0


def test_bad_places(tmp_path: Path, tiny: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="is a folder"):
        PassageStore(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="cannot make a store"):
        PassageStore(tmp_path / "file" / "p.db")
    for bound in (0, "1GB", True):
        with pytest.raises(InvalidInputError, match="max_bytes must be >= 1"):
            PassageStore(max_bytes=bound)
    with pytest.raises(InvalidInputError, match="store must be a PassageStore or the name of its file; got int"):
        SpecPC(tiny, store=3)
