"""What a client does before and after its requests: addresses, settings it refuses, pauses between tries."""

import copy
import json
import math
import pickle
import re
import sys
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations import CompressionConfig, CompressionResult, SpecPC, SpecPCConfig, load_model
from draftapprox_integrations.errors import (
    InvalidInputError,
    MissingDependencyError,
    ModelLoadError,
    ServiceUnavailableError,
)
from draftapprox_integrations.frameworks.retrieval import CompressorReference
from draftapprox_integrations.report.heatmap import Heatmap
from draftapprox_integrations.results import CompressedPassage
from draftapprox_integrations.specpc.http_client import Attempts
from draftapprox_integrations.specpc.remote import RemoteDraft

URL = "http://127.0.0.1:9"

texts = st.text(st.characters(codec=None, categories=("L", "Zs", "Cs", "So")), max_size=8)
counts = st.integers(0, 1 << 40)
places = st.integers(0, (1 << 32) - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
spans = st.lists(st.tuples(counts, counts), max_size=3)
passages = st.builds(
    CompressedPassage,
    texts,
    texts,
    spans,
    st.one_of(st.just(math.nan), numbers),
    counts,
    counts,
    st.lists(st.tuples(places, places, numbers), max_size=3),
    st.one_of(st.none(), texts),
    counts,
)
results = st.builds(
    CompressionResult,
    st.lists(passages, max_size=3),
    texts,
    counts,
    counts,
    counts,
    texts,
    st.dictionaries(st.sampled_from(["tokenize", "score", "total"]), numbers),
    texts,
    counts,
    st.builds(Heatmap),
)


@given(results)
def test_a_result_comes_back_from_its_json(result: CompressionResult) -> None:
    again = CompressionResult.from_dict(json.loads(json.dumps(result.to_dict(full=True))), Heatmap())
    assert again == result
    assert again.to_html() == result.to_html()


@pytest.mark.parametrize("broken", [{}, {"passages": []}, {"passages": [{}]}, [], None, {"passages": [1]}])
def test_what_is_no_result_is_refused(broken: Any) -> None:
    with pytest.raises(ValueError, match="not a compression result as to_dict"):
        CompressionResult.from_dict(broken, Heatmap())


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://host:99999",
        "http://host:port",
        "http://ho st",
        "http://host?x=1",
        "http://host#x",
        "http://h\n",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidInputError, match="a service is named by its address"):
        SpecPC(address)


def test_an_address_holds_no_password() -> None:
    with pytest.raises(InvalidInputError, match="must hold no password") as caught:
        SpecPC("http://me:hidden@host:8000")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", SpecPCConfig(max_capacity_prompt=99)),
        ("compression", {"granularity": "word"}),
        ("scorer", "heads"),
        ("tokenizer", str.split),
        ("store", "passages.db"),
        ("embedder", len),
        ("heads", "heads.json"),
    ],
)
def test_settings_of_the_service_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"^{name}: a service has its own"):
        SpecPC(URL, **{name: value})
    if name != "heads":
        with pytest.raises(InvalidInputError, match=f"^{name}: a service has its own"):
            CompressorReference(URL, **{name: value})


def test_defaults_beside_an_address_are_no_settings() -> None:
    assert SpecPC(URL, SpecPCConfig(), compression=CompressionConfig()).config == SpecPCConfig()


@pytest.mark.parametrize(
    "use",
    [
        lambda pc: pc.select([[1, 2]]),
        lambda pc: pc.calibrate(),
        lambda pc: pc.scorer,
        lambda pc: pc.draft.model,
        lambda pc: pc.draft.tokenizer,
        lambda pc: pc.draft.device,
        lambda pc: pc.draft.require_tokenizer(),
    ],
)
def test_what_needs_the_weights_is_refused(use: Any) -> None:
    with pytest.raises(InvalidInputError, match="the draft is in the service at http://127.0.0.1:9: select, calibrate"):
        use(SpecPC(URL))


def test_compiled_patterns_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="strings in protect, not compiled patterns"):
        SpecPC(URL).compress(["a"], "b", protect=[re.compile("a")])


def test_infinite_scores_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="finite retriever_scores"):
        SpecPC(URL).compress(["a"], "b", retriever_scores=[math.inf])


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingDependencyError, match="pip install httpx"):
        SpecPC(URL)


def test_an_address_is_no_model() -> None:
    with pytest.raises(ModelLoadError, match="may be a service, which SpecPC and its adapters take"):
        load_model(URL)


def test_a_token_is_neither_shown_nor_saved_nor_for_models(tiny: Any) -> None:
    pc = SpecPC(URL, token="hidden")
    again = pickle.loads(pickle.dumps(pc))
    assert again.draft.source == pc.draft.source == URL
    for made in (pc, again):
        assert "hidden" not in repr(made) + repr(made.draft) + repr(pickle.dumps(made))
    assert copy.deepcopy(pc.draft) is pc.draft
    draft = pickle.loads(pickle.dumps(RemoteDraft(URL, timeout=7, patience=3)))
    assert (draft._http.timeout, draft._http.patience) == (7, 3)
    with pytest.raises(InvalidInputError, match="token is for a service"):
        SpecPC(tiny, token="hidden")
    with pytest.raises(InvalidInputError, match="printable ASCII without spaces") as caught:
        SpecPC(URL, token="hid\nden")
    assert "hid\n" not in str(caught.value)


def test_references_are_the_address() -> None:
    by_name, shared = CompressorReference(URL), CompressorReference(SpecPC(URL))
    assert by_name == shared == pickle.loads(pickle.dumps(by_name))
    assert by_name.draft_name == URL
    assert by_name != CompressorReference("http://127.0.0.1:10")


def test_bad_arguments_are_refused_before_a_request() -> None:
    pc = SpecPC(URL)
    for options in ({"max_tokens": 0}, {"order": "best"}, {"titles": ["a", "b"]}, {"on_empty": "x"}):
        with pytest.raises(InvalidInputError):
            pc.compress(["a"], "b", **options)
    with pytest.raises(InvalidInputError, match="query must be a non-empty string"):
        pc.compress(["a"], " ")
    with pytest.raises(InvalidInputError, match="timeout must be seconds"):
        RemoteDraft(URL, timeout=0)


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_pauses_grow_and_end() -> None:
    attempts = Attempts(URL, timeout=1, patience=4)
    pauses = [attempts.pause_after(httpx.ConnectError("refused")) for _ in range(5)]
    assert all(pause is not None for pause in pauses)
    for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6), strict=True):
        assert least <= pause <= 1.5 * least
    with pytest.raises(ServiceUnavailableError, match="no service answers at http://127.0.0.1:9"):
        Attempts(URL, timeout=1, patience=0.05).pause_after(httpx.ConnectError("refused"))


def test_retry_after_is_honoured_and_bounded() -> None:
    assert 3 <= Attempts(URL, 1, 10).pause_after(answer(429, retry_after="3")) <= 4.5
    assert Attempts(URL, 1, 10).pause_after(answer(429, retry_after="60")) is None  # beyond its patience
    assert Attempts(URL, 1, 10).pause_after(answer(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")) < 1
    for status in (200, 400, 401, 413, 422, 500):
        assert Attempts(URL, 1, 10).pause_after(answer(status)) is None


def test_a_slow_answer_is_not_asked_for_again() -> None:
    with pytest.raises(ServiceUnavailableError, match="did not answer within 1 s"):
        Attempts(URL, timeout=1, patience=10).pause_after(httpx.ReadTimeout("slow"))
