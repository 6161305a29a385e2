"""`SpecPC(url)` against a real service: the same results and errors as in this process."""

import asyncio
import gc
import json
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from draftapprox_integrations import CompressionResult, LoadedModel, SpecPC, errors
from draftapprox_integrations.errors import BudgetError, InvalidInputError, ServiceUnavailableError
from draftapprox_integrations.specpc.remote import RemoteDraft
from tests.conftest import ticking
from tests.helpers.service import HeldScorer, Running, running
from tests.integration.serving.conftest import QUERY, TEXTS

OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 40},
    {"keep_ratio": 0.3},
    {"recall": 0.6},
    {"min_relevance": 0.2, "max_tokens": 60},
    {"top_n": 1},
    {"max_tokens": 60, "order": "relevance"},
    {"max_tokens": 60, "titles": ["The mill", None, None, "Schloß"]},
    {"max_tokens": 45, "on_empty": "keep_best"},
    {"max_tokens": 60, "protect": ["museum", "Fluß"]},
    {"max_tokens": 40, "retriever_scores": [0.25, None, float("nan"), -3]},
    {"keep_ratio": Fraction(1, 3), "top_n": np.int64(2), "retriever_scores": np.array([1, 2, 3, 4])},
    {"max_tokens": (1 << 53) - 1, "top_n": (1 << 53) - 1},
    {"max_tokens": 4000},  # everything fits: no score, no heat
    {},
]


def untimed(result: CompressionResult) -> CompressionResult:
    return replace(result, timings=dict.fromkeys(result.timings, 0.0))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_results_are_equal(options: Any, local: SpecPC, remote: SpecPC) -> None:
    here, there = local.compress(TEXTS, QUERY, **options), remote.compress(TEXTS, QUERY, **options)
    assert untimed(here) == untimed(there)
    assert untimed(here).to_html() == untimed(there).to_html()
    assert here.timings.keys() == there.timings.keys()


def test_nothing_and_lone_surrogates(local: SpecPC, remote: SpecPC) -> None:
    for texts, query in (([], QUERY), (["a \ud800 b. The bridge \udfff is red."] * 3, "bridge \ud83d")):
        here, there = local.compress(texts, query, max_tokens=20), remote.compress(texts, query, max_tokens=20)
        assert untimed(here) == untimed(there)


async def test_async_is_equal_and_leaves_the_loop_free(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer)) as service:
        local, remote = SpecPC(tiny, scorer=scorer), SpecPC(service.url)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "to_thread", None)  # no thread of this process waits
            async with ticking() as ticks:
                asked = [asyncio.create_task(remote.acompress(TEXTS, QUERY, max_tokens=40)) for _ in range(3)]
                while ticks() < 5:
                    await asyncio.sleep(0.002)
                scorer.let_go()
                found = await asyncio.gather(*asked)
        here = await local.acompress(TEXTS, QUERY, max_tokens=40)
    assert [untimed(result) for result in found] == [untimed(here)] * 3


def test_each_event_loop_has_connections_of_its_own(local: SpecPC, service: Running) -> None:
    remote, expected = SpecPC(service.url), untimed(local.compress(TEXTS, QUERY, max_tokens=40))
    for _ in range(2):
        assert untimed(asyncio.run(remote.acompress(TEXTS, QUERY, max_tokens=40))) == expected

    async def with_one_of_its_own() -> CompressionResult:
        return await SpecPC(service.url).acompress(TEXTS, QUERY, max_tokens=40)

    assert untimed(asyncio.run(with_one_of_its_own())) == expected
    del remote
    gc.collect()  # an open socket would warn


def test_threads_share_a_client(local: SpecPC, remote: SpecPC) -> None:
    expected, found = untimed(local.compress(TEXTS, QUERY, max_tokens=40)), []
    threads = [
        threading.Thread(target=lambda: found.append(untimed(remote.compress(TEXTS, QUERY, max_tokens=40))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(remote: SpecPC) -> None:
    expected = remote.count_tokens(TEXTS)  # the parent's connection is open now
    context = multiprocessing.get_context("fork")
    counted = context.SimpleQueue()
    child = context.Process(target=lambda: counted.put(remote.count_tokens(TEXTS)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert counted.get() == remote.count_tokens(TEXTS) == expected


def test_counts_names_and_ingest(local: SpecPC, remote: SpecPC, tiny: LoadedModel) -> None:
    assert remote.count_tokens([*TEXTS, "\ud800"] * 60) == local.count_tokens([*TEXTS, "\ud800"] * 60)
    assert remote.count_tokens([]) == []
    assert remote.draft.name == tiny.name
    with pytest.raises(InvalidInputError, match="ingest keeps the keys of the draft's calibrated heads"):
        remote.ingest(TEXTS)  # the tiny model was never calibrated


@pytest.mark.embedded
def test_ingest_reads_once_and_tells_its_progress(embedded_model: LoadedModel) -> None:
    told: list[tuple[int, int]] = []
    texts = [f"{text} Number {i}." for i in range(6) for text in TEXTS[:3]]
    with running(SpecPC(embedded_model)) as service:
        pc = SpecPC(service.url)
        assert pc.ingest(texts, ["A title"] * len(texts), progress=lambda *counts: told.append(counts)) > 0
        assert pc.ingest(texts, ["A title"] * len(texts)) == 0
        assert told == [(16, 18), (18, 18)]
        assert pc.ingest([]) == 0
        found = pc.compress(texts[:4], QUERY, max_tokens=30, titles=["A title"] * 4)
        assert found.draft_tokens < 20  # the query's only


def test_errors_keep_their_class_and_message(local: SpecPC, remote: SpecPC) -> None:
    for options in ({"protect": ["mill"], "max_tokens": 2}, {"max_tokens": 0}, {"retriever_scores": [1]}):
        with pytest.raises(InvalidInputError) as here:
            local.compress(TEXTS, QUERY, **options)
        with pytest.raises(InvalidInputError) as there:
            remote.compress(TEXTS, QUERY, **options)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    assert isinstance(BudgetError("x"), InvalidInputError)


def test_other_errors_of_the_draft_come_back(tiny: LoadedModel) -> None:
    class Broken:
        def __init__(self) -> None:
            self.error: Exception = RuntimeError("user text")

        def score(self, query: Any, passages: Any, sentences: Any) -> Any:
            raise self.error

    scorer = Broken()
    with running(SpecPC(tiny, scorer=scorer)) as service:
        pc = SpecPC(RemoteDraft(service.url, patience=0.1))
        with pytest.raises(ServiceUnavailableError, match="answered 500: the service failed") as caught:
            pc.compress(TEXTS, QUERY, max_tokens=20)
        assert "user text" not in str(caught.value)
        for kind in (errors.ScoringError, errors.UnsupportedModelError, errors.MissingDependencyError):
            scorer.error = kind("what to do")
            with pytest.raises(kind, match="^what to do$"):
                pc.compress(TEXTS, QUERY, max_tokens=20)


def test_limits_of_the_service_are_told(tiny: LoadedModel) -> None:
    with running(SpecPC(tiny), max_passages=3, max_input_tokens=50, max_body_bytes=2000) as service:
        pc = SpecPC(service.url)
        with pytest.raises(InvalidInputError, match="^4 texts are too many: this service takes 3 at a time$"):
            pc.compress(TEXTS, QUERY)
        with pytest.raises(InvalidInputError, match=r"^\d+ tokens are too many: this service takes 50 at a time$"):
            pc.compress(TEXTS[:2], QUERY)
        with pytest.raises(InvalidInputError, match="the body has more than 2000 bytes"):
            pc.compress(["word " * 1000], QUERY)


def test_tokens(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAFTAPPROX_TOKEN", raising=False)
    with running(SpecPC(tiny), token="s3cret") as service:
        for pc in (SpecPC(service.url), SpecPC(service.url, token="wrong")):
            with pytest.raises(InvalidInputError, match="wants its token: set DRAFTAPPROX_TOKEN"):
                pc.compress(TEXTS, QUERY)
        assert SpecPC(service.url, token="s3cret").compress(TEXTS, QUERY).passages
        monkeypatch.setenv("DRAFTAPPROX_TOKEN", "s3cret\n")
        assert SpecPC(service.url).compress(TEXTS, QUERY).passages


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer after the other, the last one for ever; yields its URL and the paths asked."""
    left, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            if status == 0:  # the connection breaks off
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


COUNTED: tuple[int, dict[str, str], bytes] = (200, {}, json.dumps({"tokens": [7]}).encode())
BUSY = json.dumps({"message": "full", "error": {"message": "full"}}).encode()


def test_what_passes_is_tried_again() -> None:
    failing = [(status, {"Retry-After": "0"}, BUSY) for status in (429, 502, 503, 504)]
    with scripted(*failing, (0, {}, b""), COUNTED) as (url, asked):
        assert SpecPC(url).count_tokens(["a"]) == [7]
        assert len(asked) == 6


async def test_what_passes_is_tried_again_async(local: SpecPC) -> None:
    result = local.compress(TEXTS, QUERY, max_tokens=40)
    answer: Any = (200, {}, json.dumps(result.to_dict(full=True)).encode())
    with scripted((429, {"Retry-After": "0"}, BUSY), (0, {}, b""), answer) as (url, asked):
        assert await SpecPC(url).acompress(TEXTS, QUERY) == result
        assert len(asked) == 3


def test_patience_ends() -> None:
    with scripted((503, {"Retry-After": "30"}, BUSY)) as (url, asked):
        with pytest.raises(ServiceUnavailableError, match="answered 503: full"):
            SpecPC(RemoteDraft(url, patience=1)).count_tokens(["a"])
        assert len(asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"tokens": "x"}', b'{"tokens": 5}', b"\xff"])
def test_another_service(body: bytes) -> None:
    with scripted((200, {}, body)) as (url, _), pytest.raises(ServiceUnavailableError, match="check the address"):
        SpecPC(url).count_tokens(["a"])


def test_no_service(local: SpecPC) -> None:
    pc = SpecPC(RemoteDraft("http://127.0.0.1:9", patience=0.2))
    with pytest.raises(ServiceUnavailableError, match="no service answers at http://127.0.0.1:9 .*draftapprox serve"):
        pc.compress(TEXTS, QUERY)
    assert repr(pc) == "SpecPC('http://127.0.0.1:9')"  # shown without asking


def test_a_slow_service(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer)) as service:
        pc = SpecPC(RemoteDraft(service.url, timeout=0.3))
        with pytest.raises(ServiceUnavailableError, match="did not answer within 0.3 s"):
            pc.compress(TEXTS, QUERY, max_tokens=20)
