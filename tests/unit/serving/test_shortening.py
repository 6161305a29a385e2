"""Bodies in, bodies out: what is protected survives, kept text is verbatim and in order, the budget holds."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.serving.dropped import DroppedStore
from draftapprox_integrations.serving.errors import ServiceError
from draftapprox_integrations.serving.outcome import Wish
from draftapprox_integrations.serving.proxy_settings import ProxySettings, upstream_base
from draftapprox_integrations.serving.shortening import fair_shares, shorten
from draftapprox_integrations.specpc.scoring.bm25 import BM25Scorer

MILL = "The old mill was built in 1821. Today it is a small museum. It closes in winter. "
BRIDGE = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning. "
FOUND = MILL + BRIDGE + "Visitors like the quiet path along the river, where herons stand in the shallows. "
QUESTION = "In which year was the bridge opened?"
CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": json.dumps({"q": FOUND * 2})}}


@pytest.fixture(scope="module")
def compressor(tiny: LoadedModel) -> SpecPC:
    return SpecPC(tiny, scorer=BM25Scorer())


def run(compressor: Any, body: Any, kind: Any = "chat", **options: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return shorten(compressor, raw, kind, **({"max_tokens": 40} | options))


def rag(context: Any = FOUND) -> Any:
    return f"Use the context.\n\nContext:\n{context}\n\nQuestion: {QUESTION}"


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def tool(content: Any) -> Any:
    return {"role": "tool", "tool_call_id": "c1", "content": content}


def test_only_context_changes(compressor: SpecPC) -> None:
    body = {
        "model": "m",
        "temperature": 0.1,
        "stream": True,
        "tools": [{"type": "function", "function": {"name": "search", "description": rag()}}],
        "messages": [
            {"role": "system", "content": rag()},
            {"role": "developer", "content": rag()},
            user(QUESTION),
            {"role": "assistant", "content": rag(), "tool_calls": [CALL]},
            tool(FOUND),
            user(rag()),
        ],
    }
    result = run(compressor, body)
    after = json.loads(result.body)
    assert result.changed
    assert result.tokens_after <= 40 < result.tokens_before
    changed = [index for index in range(6) if after["messages"][index] != body["messages"][index]]
    assert changed == [4, 5]
    assert {**after, "messages": None} == {**body, "messages": None}
    assert "opened in 1932" in after["messages"][4]["content"]
    start, end = rag().split(FOUND)
    text = after["messages"][5]["content"]
    assert text.startswith(start)
    assert text.endswith(end)
    assert "museum" not in text


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b"[1]", b"null", b'{"messages": 3}', b'{"messages": [3, null, {"role": 4, "content": {}}]}',
        b'{"messages": [{"role": "user", "content": [1, {"type": "text", "text": 5}, {"type": "text"}]}]}',
        b"[" * 100_000, b'{"a": NaN, ', b'{"prompt": {"a": 1}}',
    ],
)  # fmt: skip
def test_malformed_bodies_stay(compressor: SpecPC, body: Any) -> None:
    for kind in ("chat", "completion"):
        assert run(compressor, body, kind).body is body


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_what_could_not_be_written_again_stays(compressor: SpecPC, number: Any) -> None:
    body = json.dumps({"temperature": 7, "messages": [user(rag())]}).replace("7", number, 1).encode()
    assert run(compressor, body).body is body


@pytest.mark.parametrize(
    "messages",
    [
        [user(QUESTION)],
        [user(f"{FOUND}\n\n{QUESTION}")],
        [tool(FOUND)],  # no question to choose by
        [user(QUESTION), tool("It was 1932.")],
        [user(QUESTION), tool(json.dumps({"text": FOUND}))],  # short enough
        [user(QUESTION), tool(json.dumps({"image": "A" * 4000, FOUND * 4: 1}))],  # base64, a key
        [user(QUESTION), tool(json.dumps({"text": json.dumps({"inner": FOUND * 4})}))],
        [user([{"type": "image_url", "image_url": {"url": "data:" + FOUND * 4}}, {"type": "text", "text": QUESTION}])],
        [user([{"type": "file", "file": {"file_data": FOUND * 4}}, {"type": "text", "text": QUESTION}])],
        [],
    ],
)
def test_left_as_it_is(compressor: SpecPC, messages: Any) -> None:
    body = json.dumps({"messages": messages}, indent=1).encode()
    result = run(compressor, body)
    assert result.body is body
    assert result.tokens_before == result.tokens_after


def test_results_in_json_stay_json(compressor: SpecPC) -> None:
    results = [{"title": "Brücke 🌉", "url": "http://x/" + "a" * 500, "text": FOUND * 3, "n": 1e2}]
    for ascii_only in (True, False):
        text = json.dumps(results, ensure_ascii=ascii_only, indent=2)
        after = json.loads(run(compressor, {"messages": [user(QUESTION), tool(text)]}).body)["messages"][1]["content"]
        assert after.isascii() == ascii_only
        kept = json.loads(after)[0].pop("text")
        assert "opened in 1932" in kept
        assert len(kept) < len(FOUND)
        before, rest = text.split(json.dumps(FOUND * 3))
        assert after.startswith(before)  # the very characters
        assert after.endswith(rest)


def test_content_parts(compressor: SpecPC) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
    parts = [{"type": "text", "text": MILL * 3}, image, {"type": "text", "text": BRIDGE, "cache_control": "x"}]
    after = json.loads(run(compressor, {"messages": [user(QUESTION), tool(parts)]}, max_tokens=28).body)
    (*_, last) = after["messages"][1]["content"]
    assert image in after["messages"][1]["content"]
    assert last["cache_control"] == "x"
    assert "1932" in last["text"]
    assert all(part.get("text") != "" for part in after["messages"][1]["content"])


def test_documents(compressor: SpecPC) -> None:
    document = {"type": "document", "title": FOUND, "source": {"type": "text", "data": FOUND * 3}}
    scan = {"type": "document", "source": {"type": "base64", "data": FOUND * 3}}
    body = {
        "messages": [user([document, scan, {"type": "text", "text": QUESTION}])],
        "documents": [{"text": FOUND * 3}],
    }
    after = json.loads(run(compressor, body).body)
    first, second, question = after["messages"][0]["content"]
    assert (second, question["text"], first["title"]) == (scan, QUESTION, FOUND)
    for text in (first["source"]["data"], after["documents"][0]["text"]):
        assert len(text) < len(FOUND)
        assert "1932" in text


def test_completions(compressor: SpecPC) -> None:
    prompts = [f"{rag()}\nAnswer:", QUESTION, [1, 2, 3], f"<|im_start|>system\n{rag()}"]
    after = json.loads(run(compressor, {"prompt": prompts}, "completion").body)["prompt"]
    assert after[1:] == prompts[1:]
    assert after[0].endswith(f"Question: {QUESTION}\nAnswer:")
    assert len(after[0]) < len(prompts[0])
    assert json.loads(run(compressor, {"prompt": prompts[0]}, "completion").body)["prompt"] == after[0]


def test_blank_lines_between_kept_paragraphs_stay(compressor: SpecPC) -> None:
    context = "\n\n".join([MILL * 3, BRIDGE * 3, MILL * 3, BRIDGE * 3])
    body = {"messages": [user(rag(context))]}
    after = json.loads(run(compressor, body, max_tokens=60).body)["messages"][0]["content"]
    assert "museum" not in after
    assert re.search(r"Context:\n\S", after)
    assert after.count("\n\n") == 3  # after the instruction, between both bridges, before the question


def test_threshold_ratio_and_default(compressor: SpecPC) -> None:
    body = {"messages": [user(rag())]}
    tokens = run(compressor, body).tokens_before
    assert not run(compressor, body, trigger_tokens=tokens).changed
    assert run(compressor, body, trigger_tokens=tokens - 1).changed
    assert run(compressor, body, max_tokens=None, keep_ratio=0.5).tokens_after <= tokens / 2
    assert not run(compressor, body, max_tokens=None).changed  # the compressor's own budget: 1,024 tokens
    assert run(compressor, {"messages": [user(rag()), user(rag())]}, max_tokens=1).tokens_after <= 1


def test_dropped_text_and_kept_text_are_the_whole(compressor: SpecPC) -> None:
    store = DroppedStore(100_000, 60)
    body = {"messages": [user(QUESTION), tool(FOUND), tool(FOUND)]}
    plain, marked = (run(compressor, body, keep_dropped=store.put, marker=marker) for marker in (False, True))
    assert len(plain.dropped) == len(marked.dropped) == 2
    for index, key in enumerate(plain.dropped, 1):
        kept = json.loads(plain.body)["messages"][index]["content"]
        pieces = store.get(key)
        assert all(FOUND[piece.start : piece.start + len(piece.text)] == piece.text for piece in pieces)
        words = [*kept.split(), *(word for piece in pieces for word in piece.text.split())]
        assert sorted(words) == sorted(FOUND.split())
        text = json.loads(marked.body)["messages"][index]["content"]
        assert text.startswith(kept)
        assert text.removeprefix(kept).endswith(f"characters left out; id {marked.dropped[index - 1]}]")


WORDS = st.sampled_from(
    ["bridge", "mill", "1932.", "opened", "red.", "Question:", "Context:", "<title>", "-----", "ü", "\n", "\n\n", "💡"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=60).map(" ".join)
ASKED = st.text(st.characters(exclude_characters="<"), max_size=80)


@settings(max_examples=60, deadline=None)
@given(system=TEXTS, context=TEXTS, result=TEXTS, asked=ASKED, budget=st.integers(1, 60))
def test_protected_text_survives(
    compressor: SpecPC, system: Any, context: Any, result: Any, asked: Any, budget: Any
) -> None:
    question = f"Which bridge? {asked}"
    body = {
        "messages": [
            {"role": "system", "content": system},
            user(f"Be exact.\n<context>\n{context.replace('</context>', '')}\n</context>\n\n{question}"),
            {"role": "assistant", "content": context, "tool_calls": [CALL]},
            tool(result),
            tool(json.dumps({"hit": FOUND * 2 + result, "id": 7})),
        ]
    }
    before = copy.deepcopy(body)
    shortened = run(compressor, body, max_tokens=budget)
    assert body == before
    messages = json.loads(shortened.body)["messages"]
    assert shortened.tokens_after <= budget
    assert (messages[0], messages[2]) == (before["messages"][0], before["messages"][2])
    assert messages[1]["content"].startswith("Be exact.\n<context>\n")
    assert messages[1]["content"].endswith(f"\n</context>\n\n{question}")
    hit = json.loads(messages[4]["content"])
    assert hit["id"] == 7
    inside = messages[1]["content"].removeprefix("Be exact.\n<context>\n").removesuffix(f"\n</context>\n\n{question}")
    for kept, original in ((inside, context), (messages[3]["content"], result), (hit["hit"], FOUND * 2 + result)):
        position = 0
        for word in kept.split():
            position = original.find(word, position) + len(word)
            assert position >= len(word), (word, original)


@given(st.lists(st.integers(0, 500), max_size=12), st.integers(0, 2000))
def test_fair_shares(tokens: Any, budget: Any) -> None:
    shares = fair_shares(tokens, budget)
    assert all(0 <= share <= count for share, count in zip(shares, tokens, strict=True))
    assert sum(shares) <= budget
    cut = [share for share, count in zip(shares, tokens, strict=True) if share < count]
    assert not cut or max(cut) - min(cut) <= 1
    assert budget - sum(shares) < max(len(tokens), 1) or shares == tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 5, "keep_ratio": 0.5}, "not both"),
        ({"trigger_tokens": -1}, "trigger_tokens"), ({"workers": True}, "workers"), ({"time_limit": 0}, "time_limit"),
        ({"read_seconds": float("inf")}, "read_seconds"), ({"marker": 1}, "marker"),
        ({"marker": True, "dropped_bytes": 0}, "dropped_bytes=0"), ({"upstream_key": "a\nb"}, "upstream_key"),
    ],
)  # fmt: skip
def test_settings(changes: Any, message: Any) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ProxySettings(**changes)


def test_addresses() -> None:
    for given_, base in [
        ("http://localhost:8000", "http://localhost:8000/v1"), ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://api.example.com/openai/v1", "https://api.example.com/openai/v1"),
    ]:  # fmt: skip
        assert str(upstream_base(given_)) == base
    for wrong in ("localhost:8000", "", "ftp://x/v1", "http://", "http://x/v1?a=1", None, "http://x:y/"):
        with pytest.raises(InvalidInputError, match="upstream must be an address"):
            upstream_base(wrong)


def test_headers_of_a_request() -> None:
    assert Wish.of({}) == Wish(off=False, max_tokens=None)
    assert Wish.of({"x-draftapprox": " OFF ", "x-draftapprox-max-tokens": "12"}) == Wish(off=True, max_tokens=12)
    for wrong in (
        {"x-draftapprox": "no"},
        *({"x-draftapprox-max-tokens": value} for value in ("", "0", "-1", "1.5", "²")),
    ):
        with pytest.raises(ServiceError, match="header X-DraftApprox"):
            Wish.of(wrong)
