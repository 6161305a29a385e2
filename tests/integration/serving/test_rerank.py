"""Rerank clients, unmodified, against the service: Cohere's; and the layouts of Jina and TEI."""

from typing import Any

import cohere
import httpx
import pytest
from cohere.core.api_error import ApiError

from draftapprox_integrations import SpecPC
from tests.helpers.service import Running, running
from tests.integration.serving.conftest import QUERY, TEXTS


@pytest.fixture(scope="module")
def expected(local: SpecPC) -> list[tuple[int, float]]:
    passages = local.compress(TEXTS, QUERY, keep_ratio=1.0, order="relevance").passages
    assert passages[0].score > passages[-1].score
    return [(passage.index, passage.score) for passage in passages]


def ranked(answer: Any) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


def test_the_cohere_client(service: Running, expected: Any) -> None:
    with cohere.Client("no key", base_url=service.url) as first:
        answer = first.rerank(query=QUERY, documents=TEXTS, model="any", top_n=2, return_documents=True)
        objects = first.rerank(query=QUERY, documents=[{"text": text} for text in TEXTS])
    assert ranked(answer) == expected[:2]
    assert [result.document.text for result in answer.results] == [TEXTS[index] for index, _ in expected[:2]]
    assert ranked(objects) == expected
    assert objects.results[0].document is None

    with cohere.ClientV2("no key", base_url=service.url) as second:
        answer = second.rerank(model="any", query=QUERY, documents=TEXTS, max_tokens_per_doc=4096)
    assert ranked(answer) == expected
    assert answer.meta.api_version.version == "2"


async def test_the_async_cohere_client(service: Running, expected: Any) -> None:
    async with cohere.AsyncClientV2("no key", base_url=service.url) as client:
        assert ranked(await client.rerank(model="m", query=QUERY, documents=TEXTS)) == expected


def test_errors_reach_the_cohere_client(local: SpecPC) -> None:
    with running(local, token="s3cret", max_passages=3) as service:
        with cohere.ClientV2("wrong", base_url=service.url) as client:
            with pytest.raises(ApiError) as caught:
                client.rerank(model="m", query=QUERY, documents=TEXTS)
            assert caught.value.status_code == 401
        with cohere.ClientV2("s3cret", base_url=service.url) as client:
            assert client.rerank(model="m", query=QUERY, documents=TEXTS[:3]).results
            with pytest.raises(ApiError) as caught:
                client.rerank(model="m", query=QUERY, documents=TEXTS)
            assert caught.value.status_code == 413
            assert caught.value.body["message"] == "4 texts are too many: this service takes 3 at a time"
            with pytest.raises(ApiError) as caught:
                client.rerank(model="m", query=" ", documents=TEXTS[:3])
            assert caught.value.status_code == 422
            assert "query must be a non-empty string" in caught.value.body["message"]


def post(service: Running, path: str, **body: Any) -> Any:
    answer = httpx.post(service.url + path, json=body)
    return answer.json() if answer.is_success else answer.status_code


def test_jina(service: Running, expected: Any) -> None:
    answer = post(service, "/v1/rerank", model="jina", query=QUERY, documents=TEXTS, top_n=3, return_documents=True)
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == expected[:3]
    assert answer["results"][0]["document"] == {"text": TEXTS[expected[0][0]]}
    assert answer["model"] == "jina"
    assert answer["usage"]["total_tokens"] > 0


def test_tei(service: Running, expected: Any) -> None:
    answer = post(service, "/rerank", query=QUERY, texts=TEXTS, raw_scores=False, truncate=True)
    assert answer == [{"index": index, "score": score} for index, score in expected]
    answer = post(service, "/rerank", query=QUERY, texts=TEXTS, return_text=True)
    assert [one["text"] for one in answer] == [TEXTS[index] for index, _ in expected]


@pytest.mark.parametrize("limit", [{"max_tokens": 30}, {"keep_ratio": 0.3}, {"recall": 0.5}, {"min_relevance": 0.1}])
def test_what_is_kept_beside_the_scores(limit: Any, service: Running, local: SpecPC) -> None:
    passages = local.compress(TEXTS, QUERY, order="relevance", top_n=2, **limit).passages[:2]
    kept = [(passage.index, passage.text, [list(span) for span in passage.kept]) for passage in passages]
    answer = post(service, "/v1/rerank", query=QUERY, documents=TEXTS, top_n=2, **limit)
    assert [(one["index"], one["text"], one["kept"]) for one in answer["results"]] == kept
    answer = post(service, "/rerank", query=QUERY, texts=TEXTS, top_n=2, **limit)
    assert [(one["index"], one["text"], one["kept"]) for one in answer] == kept


def test_titles_are_scored(service: Running, local: SpecPC) -> None:
    titles = ["The bridge", None, None, "A title"]
    found = local.compress(TEXTS, QUERY, keep_ratio=1.0, order="relevance", titles=titles).passages
    documents = [{"text": text, "title": title, "id": 1} for text, title in zip(TEXTS, titles, strict=True)]
    answer = post(service, "/v2/rerank", query=QUERY, documents=documents)
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [(p.index, p.score) for p in found]


def test_the_edges(service: Running) -> None:
    assert post(service, "/v1/rerank", query=QUERY, documents=[])["results"] == []
    assert post(service, "/rerank", query=QUERY, texts=[]) == []
    blank = post(service, "/rerank", query=QUERY, texts=["", " "])
    assert [one["index"] for one in blank] == [0, 1]
    assert post(service, "/rerank", query=QUERY) == 422
    assert post(service, "/rerank", query=QUERY, texts=["a"], documents=["a"]) == 422
    assert post(service, "/v1/rerank", query=QUERY, documents=[{"body": "a"}]) == 422
    assert post(service, "/v1/rerank", query=QUERY, documents=["a"], top_n=0) == 422
    assert post(service, "/v1/rerank", query=QUERY, documents=["a"], max_tokens=5, keep_ratio=0.5) == 422
