"""The heat map page and the notebook fragment."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.report.heatmap import Heatmap, render_fragment, render_page
from draftapprox_integrations.report.style import DARK, LEVELS, LIGHT
from draftapprox_integrations.results import CompressedPassage, CompressionResult

VOID = {"meta", "input"}
NOTE = "the draft did not run"
RENDERERS = pytest.mark.parametrize("render", [render_page, render_fragment])

Heat = list[tuple[int, int, float]]


def passage(
    text: str, kept: list[tuple[int, int]] | None = None, heat: Heat | None = None, score: float = 0.5
) -> CompressedPassage:
    spans = [(0, len(text))] if kept is None else kept
    return CompressedPassage(text, " ".join(text[a:b] for a, b in spans), spans, score, 1234, 56, heat or [])


def result(*passages: CompressedPassage, query: str = "Why?", draft_tokens: int = 99) -> CompressionResult:
    timings = {"tokenize": 0.0042, "draft": 2.005, "select": 0.0187}
    return CompressionResult(
        list(passages), query, 5000, 1250, 1300, "some/tokenizer", timings, "draft-name", draft_tokens, Heatmap()
    )


class Reader(HTMLParser):
    """Reads what is shown: all text, and per passage the characters with their (kept, level)."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.passages: list[list[tuple[str, bool, int]]] = []
        self.spans = 0
        self.feed(html)
        self.close()
        assert not self.open, "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if attributes.get("class") == "dah-text":
            self.passages.append([])
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, "wrongly nested"

    def handle_data(self, data: str) -> None:
        classes = [str(attributes.get("class")) for _, attributes in self.open]
        if "dah-text" in classes:
            level = next((int(name[1]) for name in classes if re.fullmatch(r"a\d", name)), 0)
            assert ("k" in classes) != ("d" in classes)
            self.passages[-1] += [(character, "k" in classes, level) for character in data]
        elif classes and self.open[-1][0] != "style":
            self.shown.append(data)

    def text(self, index: int = 0) -> str:
        return "".join(character for character, _, _ in self.passages[index])

    def kept(self, index: int = 0) -> str:
        return "".join(character for character, kept, _ in self.passages[index] if kept)

    def levels(self, index: int = 0) -> list[int]:
        return [level for _, _, level in self.passages[index]]


# ---------------------------------------------------------------------- what is shown


@RENDERERS
def test_header_and_cards(render: Any) -> None:
    shown = "|".join(Reader(render(result(passage("one", score=0.0417), passage("two", score=math.nan)))).shown)
    for expected in ("Why?", "5,000 → 1,250 (25.0%)", "1,300", "some/tokenizer", "draft-name"):
        assert expected in shown
    for expected in ("tokenize 4.2 ms", "draft 2.00 s", "select 19 ms", "Passage 1", "Passage 2", "1,234 → 56 tokens"):
        assert expected in shown
    assert "score 0.0417" in shown
    assert shown.count("score") == 1  # not that of the second, which is NaN
    assert "nan" not in shown


@RENDERERS
def test_titles(render: Any) -> None:
    named = replace(passage("one"), title="Three <Storms>")
    shown = Reader(render(result(named, passage("two")))).shown
    assert shown.count("Three <Storms>") == 1
    assert shown.index("Passage 1") < shown.index("Three <Storms>") < shown.index("Passage 2")


def test_answers_and_sources() -> None:
    named = replace(passage("one"), title="storms.csv")
    answers = {"Answer": "In <1932>.\nPerhaps.", "Answer from the full context": "\x00\ud800"}
    found = result(named, passage("two"), passage("three"))
    reader = Reader(found.to_html(answers=answers, sources=["storms.csv", "a/b.md", None]))
    shown = reader.shown
    assert shown.index("Answer") < shown.index("In <1932>.\nPerhaps.") < shown.index("Passage 1")
    assert "\ufffd\ufffd" in shown
    assert shown.count("storms.csv") == 1  # the title is the file's name
    assert shown.index("Passage 2") < shown.index("a/b.md") < shown.index("Passage 3")
    assert found.to_dict()["passages"][0]["title"] == "storms.csv"
    with pytest.raises(InvalidInputError, match="3 passages and 1 sources"):
        found.to_html(sources=["a.md"])


@RENDERERS
def test_path_of_tokenizer_is_shortened(render: Any) -> None:
    html = render(replace(result(passage("x")), tokenizer="/home/someone/models/tok", draft="C:\\models\\draft"))
    assert "someone" not in html
    assert "C:" not in html
    assert {"tok", "draft"} <= set(Reader(html).shown)


@RENDERERS
def test_nothing_kept_is_collapsed(render: Any) -> None:
    reader = Reader(render(result(passage("gone", kept=[]), passage("here"), passage(""))))
    details = [attributes for tag, attributes in reader.tags if tag == "details"]
    assert ["open" in attributes for attributes in details] == [False, True, False]
    assert reader.shown.count("dropped") == 1
    assert reader.shown.count("empty") == 1
    assert [reader.kept(n) for n in range(3)] == ["", "here", ""]


@RENDERERS
def test_draft_that_did_not_run(render: Any) -> None:
    quiet = render(result(passage("all of it", score=math.nan), draft_tokens=0))
    assert NOTE in quiet
    assert "more attention" not in quiet
    assert Reader(quiet).kept() == "all of it"
    assert NOTE not in render(result(passage("all of it", heat=[(0, 3, 1.0)])))


@RENDERERS
def test_no_passages(render: Any) -> None:
    Reader(render(CompressionResult([], "", 0, 0, 10, "t", {}, "d", 0, Heatmap())))


@RENDERERS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_odd_scores(render: Any, bad: Any) -> None:
    alone = Reader(render(result(passage("abc", heat=[(0, 3, bad)]))))
    assert alone.text() == "abc"
    assert alone.levels() == [0, 0, 0]
    beside = Reader(render(result(passage("abc", heat=[(0, 1, bad), (1, 2, 1.0), (2, 3, 1e-320)]))))
    assert beside.levels()[1:] == [LEVELS - 1, 0]


# ---------------------------------------------------------------------- heat


def test_heat_is_monotone_and_robust() -> None:
    """One huge score must not push all others to the bottom, and the order must survive."""
    scores = [1e6] + [0.001 * n for n in range(1, 200)]
    text = "x" * len(scores)
    levels = Reader(render_page(result(passage(text, heat=[(n, n + 1, s) for n, s in enumerate(scores)])))).levels()
    assert levels[0] == LEVELS - 1
    assert levels[1:] == sorted(levels[1:])
    assert set(levels) == set(range(LEVELS))


def test_heat_scale_is_shared_by_the_passages() -> None:
    hot, cold = passage("hot", heat=[(0, 3, 1.0)]), passage("cold", heat=[(0, 4, 0.001)])
    reader = Reader(render_page(result(hot, cold)))
    assert set(reader.levels(0)) == {LEVELS - 1}
    assert set(reader.levels(1)) == {0}


def test_overlapping_tokens_show_the_hottest() -> None:
    heat = [(0, 1, 0.3), (0, 1, 1.0), (0, 1, 0.1), (1, 2, 0.0)]
    assert Reader(render_page(result(passage("\U0001f600b", heat=heat)))).levels() == [LEVELS - 1, 0]


def test_neighbours_of_equal_heat_share_an_element() -> None:
    heat = [(n, n + 1, 0.5) for n in range(300)]
    assert render_fragment(result(passage("y" * 300, heat=heat))).count('<span class="a') == 1


def test_space_goes_with_the_cooler_word() -> None:
    heat = [(0, 3, 0.0001), (3, 7, 1.0), (7, 11, 1.0)]
    assert Reader(render_page(result(passage("one two six", heat=heat)))).levels() == [0] * 4 + [LEVELS - 1] * 7


# ---------------------------------------------------------------------- kept text, hostile text

SHOWABLE = st.characters(exclude_categories=["Cs", "Cc", "Cn"], include_characters="\n\t<>&\"'")


@st.composite
def results(draw: st.DrawFn, alphabet: st.SearchStrategy[str]) -> CompressionResult:
    passages = []
    for text in draw(st.lists(st.text(alphabet, max_size=40), max_size=4)):
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
        kept = list(zip(cuts[::2], cuts[1::2], strict=False))
        places = st.integers(-2, len(text) + 2)
        heat = draw(st.lists(st.tuples(places, places, st.floats()), max_size=12))
        passages.append(passage(text, kept, heat, draw(st.floats())))
    return result(*passages, query=draw(st.text(alphabet, max_size=20)), draft_tokens=draw(st.integers(0, 1)))


@pytest.mark.thorough
@given(results(SHOWABLE))
def test_kept_text_is_what_is_marked(found: Any) -> None:
    for render in (render_page, render_fragment):
        reader = Reader(render(found))
        assert len(reader.passages) == len(found.passages)
        for index, given_passage in enumerate(found.passages):
            assert reader.text(index) == given_passage.original
            assert reader.kept(index) == "".join(given_passage.original[a:b] for a, b in given_passage.kept)


@pytest.mark.thorough
@given(results(st.characters()))
def test_any_text_is_encodable(found: Any) -> None:
    for render in (render_page, render_fragment):
        html = render(found)
        html.encode("utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)
        Reader(html)


@RENDERERS
def test_unshowable_characters(render: Any) -> None:
    text = "a\x00b\ud800c\x1b[31md\x85e\ufffff\tg\nh"
    assert Reader(render(result(passage(text), query=text))).text() == "a�b�c�[31md�e�f\tg\nh"


@RENDERERS
def test_line_ends(render: Any) -> None:
    """Windows line ends are one line end, even with a span that ends between the two characters."""
    reader = Reader(render(result(passage("one\r\ntwo\rthree", kept=[(0, 4)], heat=[(0, 4, 1.0), (4, 5, 0.01)]))))
    assert reader.text() == "one\ntwo\nthree"
    assert reader.kept() == "one"


@RENDERERS
def test_markup_is_escaped(render: Any) -> None:
    bad = "</div></style></title><script>alert(1)</script><img src=x onerror='alert(1)'>\"&amp;"
    found = replace(result(passage(bad), query=bad), draft=bad, tokenizer=bad, timings={bad: 1.0, "b": 1.0, "c": 1.0})
    harmless = [tag for tag, _ in Reader(render(result(passage("x")))).tags]
    reader = Reader(render(found))
    assert [tag for tag, _ in reader.tags] == harmless
    assert reader.text() == bad
    assert "".join(reader.shown).count(bad) >= 4  # question, draft, tokenizer, step


# ---------------------------------------------------------------------- the document


def test_page_is_a_document() -> None:
    html = render_page(result(passage("x", heat=[(0, 1, 1.0)])))
    tags = Reader(html).tags
    assert html.startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in tags
    assert ("meta", {"charset": "utf-8"}) in tags
    assert len([tag for tag, _ in tags if tag == "title"]) == 1
    assert [tag for tag, _ in tags if re.fullmatch(r"h\d", tag)] == ["h1", "h2"]


@RENDERERS
def test_controls_are_labelled(render: Any) -> None:
    reader = Reader(render(result(passage("x", heat=[(0, 1, 1.0)]))))
    inputs = [attributes["type"] for tag, attributes in reader.tags if tag == "input"]
    assert inputs == ["radio", "radio", "checkbox"]
    assert len([tag for tag, _ in reader.tags if tag == "label"]) == len(inputs)
    assert {"kept and dropped", "kept only", "attention heat"} <= set(reader.shown)


def test_fragments_do_not_clash() -> None:
    html = render_fragment(result(passage("x", heat=[(0, 1, 1.0)])))
    tags = Reader(html + html).tags
    assert not [attributes for _, attributes in tags if attributes.keys() & {"id", "for"}]
    assert not {"html", "head", "body", "h1", "h2", "script"} & {tag for tag, _ in tags}
    # Radio buttons of the same name are one group, unless each has its own form.
    parts = re.split(r"(</?form\b[^>]*>)", html + html)
    assert [len(re.findall(r"<input\b", part)) for part in parts] == [0, 0, 3, 0, 0, 0, 3, 0, 0]


@RENDERERS
def test_jupyterlab_leaves_the_keys_to_what_has_the_focus(render: Any) -> None:
    """It takes Enter, Space and the arrow keys unless the focused element itself says no (seen in JupyterLab 4)."""
    tags = Reader(render(result(passage("x", heat=[(0, 1, 1.0)]), passage("y", kept=[])))).tags
    focusable = [attributes for tag, attributes in tags if tag in {"input", "summary"}]
    assert len(focusable) == 5
    assert all("data-lm-suppress-shortcuts" in attributes for attributes in focusable)


def test_style_reaches_nothing_outside() -> None:
    html = render_fragment(result(passage("x")))
    css = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert css
    selectors = [s for s in re.findall(r"([^{}]+)\{", css[1]) if not s.strip().startswith("@")]
    assert len(selectors) > 30
    for selector in selectors:
        for part in re.sub(r"\([^()]*\)", "", selector).split(","):
            assert re.search(r"\.dah\b", part), part


@RENDERERS
def test_nothing_from_outside(render: Any) -> None:
    html = render(result(passage("x", heat=[(0, 1, 1.0)])))
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in Reader(html).tags}
    assert not re.search(r"https?:|//|url\(|@import|\ssrc=|\shref=|\son\w+=", html, re.IGNORECASE)


@RENDERERS
def test_passages_of_any_language(render: Any) -> None:
    tags = Reader(render(result(passage("שלום")))).tags
    assert ("div", {"class": "dah-text", "dir": "auto", "lang": ""}) in tags


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_contrast(theme: Any) -> None:
    grounds = ["page", "card"]
    pairs = [("text", name) for name in [*grounds, *(f"k{n}" for n in range(LEVELS))]]
    pairs += [("faded", name) for name in [*grounds, *(f"d{n}" for n in range(2, LEVELS))]]
    pairs += [("muted", name) for name in grounds]
    pairs += [("accent", "page")]
    for ink, ground in pairs:
        assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
    assert contrast(theme["text"], theme["faded"]) >= 3  # kept and dropped differ without colour
    # Hotter is always further from the card.
    for letter, first in (("k", 0), ("d", 2)):
        steps = [contrast(theme["card"], theme[f"{letter}{n}"]) for n in range(first, LEVELS)]
        assert steps == sorted(steps)


def test_contrast_colours_are_those_of_the_page() -> None:
    html = render_page(result(passage("x")))
    for theme in (LIGHT, DARK):
        for name, colour in theme.items():
            assert f"--{name}:{colour};" in html
            assert f"var(--{name})" in html


@pytest.mark.thorough
def test_size_of_a_long_text() -> None:
    """100,000 tokens whose heat changes with nearly every token, as far from mergeable as it gets."""
    tokens = 100_000
    text = "word " * tokens
    heat = [(5 * n, 5 * n + 5, ((n * 7919) % 101 / 101) ** 4) for n in range(tokens)]
    kept = [(n, n + 100) for n in range(0, len(text), 400)]
    found = result(passage(text, kept, heat))
    started = time.process_time()
    html = render_page(found)
    assert time.process_time() - started < 10  # about 0.4 s of this process's CPU time, whatever else runs
    assert len(html) < 10 * len(text)
    assert Reader(html).text() == text
    assert Reader(html).kept() == "".join(text[a:b] for a, b in kept)


# ---------------------------------------------------------------------- long and empty results


def sentences(count: int, words: int = 12, start: int = 0) -> CompressedPassage:
    """Sentences of 60 characters, every third kept; attention that differs from each word to the next."""
    tokens = words * count
    heat = [(5 * n, 5 * n + 5, (((n + start) * 7919) % 101 / 101) ** 4) for n in range(tokens)]
    kept = [(5 * words * n, 5 * words * (n + 1)) for n in range(0, count, 3)]
    return passage("word " * tokens, kept, heat)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda: [sentences(5000)], id="one passage"),
        pytest.param(lambda: [sentences(100, start=n) for n in range(50)], id="50 passages"),
        pytest.param(lambda: [sentences(1, start=n) for n in range(5000)], id="5000 passages"),
    ],
)
@pytest.mark.thorough
def test_number_of_elements_is_bounded(found: Callable[..., Any]) -> None:
    """5,000 sentences have 60,000 tokens; the elements for their heat are limited, what is kept is exact."""
    passages = found()
    page = render_page(result(*passages))
    reader = Reader(page)
    stretches = sum(2 * len(given.kept) for given in passages)
    assert len(reader.tags) < 20_000 + 2 * stretches + 14 * len(passages) + 100
    assert "averaged over neighbouring words" in page
    for index, given_passage in enumerate(passages):
        assert reader.text(index) == given_passage.original
        assert reader.kept(index) == "".join(given_passage.original[a:b] for a, b in given_passage.kept)


@pytest.mark.thorough
def test_averaged_heat_shows_the_warm_part() -> None:
    """Of a text too long for every word to have its own colour, the half that was read more is the warmer one."""
    tokens = 60_000
    heat = [(5 * n, 5 * n + 5, (n % 7) * (1.0 if n < tokens / 2 else 0.05)) for n in range(tokens)]
    levels = Reader(render_page(result(passage("word " * tokens, heat=heat)))).levels()
    half = len(levels) // 2
    assert sum(levels[:half]) > 2 * sum(levels[half:])
    assert "averaged" not in render_page(result(passage("word " * 1000, heat=heat[:1000])))


@RENDERERS
def test_notes_say_why_there_is_nothing(render: Any) -> None:
    assert "There were no passages" in render(result())
    assert "Nothing was kept" in render(result(passage("gone", kept=[])))
    assert "Nothing was kept" not in render(result(passage("gone", kept=[]), passage("here")))
    assert "(no question)" in render(result(query=""))


@RENDERERS
def test_preview_is_short(render: Any) -> None:
    reader = Reader(render(result(passage("word \n" * 1000), passage("short"))))
    previews = [text for text in reader.shown if text.startswith(("word", "short"))]
    assert previews == ["word " * 24 + "…", "short"]


@RENDERERS
def test_bar_has_a_segment_per_passage(render: Any) -> None:
    def segments(count: int) -> int:
        return render(result(*[passage("x") for _ in range(count)])).count("flex-grow")

    assert [segments(count) for count in (1, 12, 60, 61)] == [1, 12, 60, 1]
    assert "width:4.5%" in render(result(passage("x")))  # 56 of 1,234 tokens
