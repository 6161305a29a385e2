"""The service as its operator sees it: the command, its end, metrics and logs."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftapprox_integrations import LoadedModel, SpecPC
from tests.helpers.command_line import run_here
from tests.helpers.service import HeldScorer, running, wait_until
from tests.integration.serving.conftest import QUERY, TEXTS

BODY = {"passages": TEXTS, "query": QUERY, "max_tokens": 20}

SERVE = """
import sys, threading, time
from draftapprox_integrations import SpecPC
from draftapprox_integrations.cli import serving
from draftapprox_integrations.cli.app import app
from draftapprox_integrations.specpc.scoring.bm25 import BM25Scorer

class Slow(BM25Scorer):
    def score(self, query, passages, sentences):
        time.sleep(float(query.split()[0]) if query[0].isdigit() else 0)
        return super().score(query, passages, sentences)

# The command as it is, but for a scorer that takes as long as the query says.
load = serving.load_compressor
serving.load_compressor = lambda draft, **settings: SpecPC(load(draft, **settings).draft, scorer=Slow())
app(sys.argv[1:])
"""


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`draftapprox serve` in a process of its own; yields it and its URL."""
    command = [sys.executable, "-c", SERVE, "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving SmolLM2-135M-Instruct at http://"), process.stderr and process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.embedded
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_sigterm_drains(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with serving("--token-file", str(token), "--graceful-seconds", "60", "--workers", "1") as (process, url):
        headers = {"Authorization": "Bearer s3cret"}
        assert httpx.post(url + "/v1/compress", json=BODY).status_code == 401
        found: list[httpx.Response] = []

        def ask() -> None:
            found.append(
                httpx.post(url + "/v1/compress", json=BODY | {"query": "2 secret words"}, headers=headers, timeout=60)
            )

        threads = [threading.Thread(target=ask) for _ in range(2)]  # one runs, one waits
        for thread in threads:
            thread.start()
        wait_until(lambda: "draftapprox_queue_depth 1.0" in httpx.get(url + "/metrics", headers=headers).text)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(url + "/readyz").status_code == 503)
        refused = httpx.post(url + "/v1/compress", json=BODY, headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        out, err = process.communicate(timeout=60)
        for thread in threads:
            thread.join()
    assert process.returncode == 0, err
    assert [answer.status_code for answer in found] == [200, 200]
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert len([line for line in lines if line.get("path") == "/v1/compress"]) == 4
    assert "secret" not in err
    assert "bridge" not in err


def test_what_does_not_finish_in_time_is_given_up(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer), graceful_seconds=0.1) as service:
        found: list[httpx.Response] = []
        ask = lambda: found.append(httpx.post(service.url + "/v1/compress", json=BODY, timeout=60))  # noqa: E731
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: scorer.begun)
        service.server.handle_exit(signal.SIGTERM, None)
        thread.join()
        assert not service.server.finished
    assert found[0].json()["message"] == "the service stopped before this request was finished"


def test_a_second_signal_does_not_wait(tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer)) as service:
        thread = threading.Thread(target=lambda: httpx.post(service.url + "/v1/compress", json=BODY, timeout=60))
        thread.start()
        wait_until(lambda: scorer.begun)
        service.server.handle_exit(signal.SIGINT, None)
        wait_until(lambda: service.service.draining)
        service.server.handle_exit(signal.SIGINT, None)
        assert not service.server.finished
        scorer.let_go()
        thread.join()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "999.1.1.1"], "cannot listen on 999.1.1.1"),
        (["--token-file", "nowhere"], "nowhere"),
        (["--body-seconds", "0"], "body_seconds must be seconds"),
    ],
)
@pytest.mark.embedded
def test_a_service_that_cannot_start(options: Any, message: str, embedded_model: LoadedModel) -> None:
    done = run_here("serve", *options)
    assert done.code == 1
    assert message in done.message


def test_an_empty_token_does_not_open_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("\n")
    assert "holds no token" in run_here("serve", "--token-file", tmp_path / "token").message
    monkeypatch.setenv("DRAFTAPPROX_TOKEN", "")
    assert "DRAFTAPPROX_TOKEN holds no token" in run_here("serve").message


def test_a_model_and_an_upstream_are_one_too_many() -> None:
    done = run_here("serve", "--model", "default", "--upstream", "http://localhost:1/v1")
    assert "give --model to answer here, or --upstream" in done.message


def test_a_port_that_is_taken(local: SpecPC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftapprox_integrations.cli.serving.load_compressor", lambda *_, **__: local)
    with running(local) as service:
        done = run_here("serve", "--port", service.url.rsplit(":", 1)[1])
    assert (done.code, "cannot listen on 127.0.0.1" in done.message) == (1, True)


def sample(text: str, name: str, **labels: str) -> float:
    found = [
        one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name == name and one.labels == labels
    ]
    assert len(found) == 1, (name, labels)
    return found[0]


def test_metrics(local: SpecPC) -> None:
    with running(local) as service, running(local) as other, httpx.Client(base_url=service.url) as client:
        results = [client.post("/v1/compress", json=BODY).json() for _ in range(2)]
        client.post("/v1/compress", content=b"{")
        client.get("/made/up")
        ranked = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS}).json()
        text = client.get("/metrics").text
        assert sample(text, "draftapprox_requests_total", path="/v1/compress", status="200") == 2
        assert sample(text, "draftapprox_requests_total", path="/v1/compress", status="422") == 1
        assert sample(text, "draftapprox_requests_total", path="other", status="404") == 1
        assert sample(text, "draftapprox_request_seconds_count", path="/v1/compress") == 3
        assert sample(text, "draftapprox_request_seconds_sum", path="/v1/compress") > 0
        before = sum(result["tokens_before"] for result in results) + ranked["usage"]["total_tokens"]
        assert sample(text, "draftapprox_tokens_before_total") == before
        assert sample(text, "draftapprox_tokens_after_total") < before
        assert sample(text, "draftapprox_requests_in_flight") == 1
        assert sample(text, "draftapprox_queue_depth") == 0
        assert sample(httpx.get(other.url + "/metrics").text, "draftapprox_tokens_before_total") == 0


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log(log_text: bool, local: SpecPC, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with running(local, log_text=log_text) as service, httpx.Client(base_url=service.url) as client:
        headers = {"X-Request-ID": "mine"}
        client.post("/v1/compress", json=BODY, headers=headers)
        client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS})
        client.post("/v1/count_tokens", json={"texts": TEXTS})
        client.post("/v1/ingest", json={"passages": TEXTS})
        client.post("/v1/compress", json=BODY | {"museum": QUERY})
        client.post("/bridge/" + QUERY, params={"query": QUERY})
        client.get("/healthz")
    records = [record for record in caplog.records if record.name == "draftapprox_integrations.serving.records"]
    lines = [json.loads(record.getMessage()) for record in records]
    assert [line["status"] for line in lines] == [200, 200, 200, 422, 422, 404]
    assert lines[0].items() >= {"id": "mine", "method": "POST", "path": "/v1/compress"}.items()
    assert lines[0]["tokens_before"] > lines[0]["tokens_after"] > 0
    assert lines[0]["ms"] > 0
    assert [line["path"] for line in lines][-1] == "other"
    written = " ".join(record.getMessage() for record in caplog.records if "httpx" not in record.name)
    assert ("museum" in written) == ("bridge" in written) == log_text
    if log_text:
        assert lines[0]["text"] == {"query": QUERY, "passages": TEXTS}


def test_an_answer_nobody_waits_for_holds_no_end(local: SpecPC, tiny: LoadedModel) -> None:
    with HeldScorer() as scorer, running(SpecPC(tiny, scorer=scorer), graceful_seconds=30) as service:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(service.url + "/v1/compress", json=BODY, timeout=0.3)
        wait_until(lambda: scorer.begun == 1)
        scorer.let_go()
        wait_until(lambda: service.service.in_flight == service.service.workers.running == 0)
