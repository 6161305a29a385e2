"""The heat map in a real browser: what it loads, shows and lets people do.

Runs in headless Chromium, driven by Playwright. The pages are opened with JavaScript switched off unless a test says
otherwise: what works here works without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from draftapprox_integrations.report.heatmap import Heatmap, render_fragment, render_page
from draftapprox_integrations.report.style import LEVELS
from draftapprox_integrations.results import CompressionResult
from tests.conftest import DEMO
from tests.helpers.command_line import run_here
from tests.helpers.heatmap_pages import (
    CONTRASTS,
    FLAGS,
    KEPT,
    NO_BROWSER,
    TEXTS,
    Site,
    find_chromium,
    in_notebook,
    storm,
)
from tests.unit.report.test_heatmap import contrast, passage, result, sentences

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install -c constraints.txt playwright"
)

THEMES = pytest.mark.parametrize("theme", ["light", "dark"])

Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # For one module: while Playwright is open its event loop counts as running, and no other test could start its own.
    executable = find_chromium()
    if executable is None:
        pytest.skip(NO_BROWSER)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opener]:
    """Opens HTML, a file or an address; whatever the browser complains about, or loads beside it, fails the test."""
    contexts, urls, complaints, requests = [], set(), [], set()

    def open_page(
        html: str | None = None, *, url: str = "", script: bool = False, width: int = 1000, **settings: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, java_script_enabled=script, reduced_motion="reduce", **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.add(request.url))
        if html is not None:
            file = tmp_path / f"page{len(contexts)}.html"
            file.write_text(html, encoding="utf-8")
            url = file.as_uri()
        urls.add(url)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == urls


def shown(page: Any) -> list[str]:
    """The text of the open passages as people see it."""
    return [text.inner_text() for text in page.locator(".dah-text").all() if text.is_visible()]


def grounds(page: Any, selector: str = ".dah-text .k span") -> set[str]:
    return set(page.locator(selector).evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)"))


CLEAR = "rgba(0, 0, 0, 0)"


# ---------------------------------------------------------------------- the network


def test_nothing_is_requested(opened: Any) -> None:
    """What the server was asked for, and what the browser's own log says, while everything is clicked."""
    with Site(render_page(storm())) as site:
        page = opened(url=site.url)
        log: list[str] = []
        protocol = page.context.new_cdp_session(page)
        protocol.send("Network.enable")
        protocol.on("Network.requestWillBeSent", lambda event: log.append(event["request"]["url"]))
        page.reload()
        for name in ("kept only", "attention heat", "kept and dropped"):
            page.get_by_text(name, exact=True).click()
        page.get_by_text("Passage 3").click()
        page.get_by_role("radio", name="kept only").press("Enter")
        page.wait_for_load_state("networkidle")
        assert log == [site.url]
        assert site.asked == ["/heat.html"] * 2
        assert page.url == site.url


def test_even_markup_in_the_page_could_load_nothing(browser: Any) -> None:
    """The second lock: if escaping failed, the page's security policy would still stop everything."""
    attack = (
        '<img src="/x.png"><link rel="stylesheet" href="/x.css"><script src="/x.js"></script>'
        '<script>document.title = "taken over"</script><iframe src="/x.html"></iframe>'
        '<style>@import "/y.css"; main { background: url(/y.png) } @font-face { font-family: x; src: url(/x.woff) } '
        'main { font-family: x }</style><base href="/elsewhere/"><form action="/sent"><button>send</button></form>'
    )
    html = render_page(storm())
    for page_html, taken_over in ((html, False), (re.sub("<meta http-equiv[^>]*>", "", html), True)):
        with Site(page_html.replace("</main>", attack + "</main>")) as site:
            context = browser.new_context()
            page = context.new_page()
            page.goto(site.url)
            page.wait_for_load_state("networkidle")
            assert (page.title() == "taken over") is taken_over
            assert ({"/x.png", "/x.css", "/x.js", "/y.png"} <= set(site.asked)) is taken_over
            page.get_by_role("button", name="send").dispatch_event("click")
            if taken_over:
                page.wait_for_url("**/sent?")
            else:
                page.wait_for_timeout(300)
                assert site.asked == ["/heat.html"]
            context.close()


# ---------------------------------------------------------------------- the controls


def test_controls_by_mouse(opened: Any) -> None:
    page = opened(render_page(storm()))
    every, only = page.get_by_role("radio", name="kept and dropped"), page.get_by_role("radio", name="kept only")
    heat = page.get_by_role("checkbox", name="attention heat")
    assert (every.is_checked(), only.is_checked(), heat.is_checked()) == (True, False, True)
    assert shown(page) == TEXTS[:2]
    assert len(grounds(page)) == LEVELS - 1

    page.get_by_text("kept only", exact=True).click()
    assert (every.is_checked(), only.is_checked()) == (False, True)
    assert shown(page) == KEPT
    assert not page.get_by_text("Passage 3").is_visible()
    assert len(grounds(page)) == LEVELS - 1

    page.get_by_text("attention heat", exact=True).click()
    assert shown(page) == KEPT
    assert grounds(page) == {CLEAR}

    page.get_by_text("kept and dropped", exact=True).click()
    assert shown(page) == TEXTS[:2]
    assert grounds(page, ".dah-text .d span") == {CLEAR}
    # Without heat, too, it is plain what was kept.
    assert grounds(page, ".dah-text .k").isdisjoint(grounds(page, ".dah-text .d"))

    page.get_by_text("Passage 3").click()
    assert shown(page) == TEXTS


def test_controls_by_keyboard(opened: Any) -> None:
    page = opened(render_page(storm()))

    def focused() -> Any:
        return page.locator(":focus")

    page.keyboard.press("Tab")
    assert focused().get_attribute("class") == "dah-all"
    page.keyboard.press("ArrowRight")
    assert shown(page) == KEPT
    page.keyboard.press("ArrowLeft")
    assert shown(page) == TEXTS[:2]
    page.keyboard.press("Enter")  # would send the form, if it could be sent
    page.keyboard.press("Tab")
    assert focused().get_attribute("type") == "checkbox"
    page.keyboard.press("Space")
    assert grounds(page) == {CLEAR}
    page.keyboard.press("Space")
    assert len(grounds(page)) == LEVELS - 1
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert shown(page) == TEXTS


def test_focus_is_seen(opened: Any) -> None:
    """Whatever Tab reaches has an outline, also where the control's label carries it."""
    page = opened(render_page(storm()))
    stops = []
    for _ in range(5):
        page.keyboard.press("Tab")
        stops.append(page.locator(":focus").evaluate("one => one.localName"))
        mark = page.locator(":focus").evaluate(
            "one => { const s = getComputedStyle(one.closest('label') ?? one); return s.outlineStyle + s.outlineWidth }"
        )
        assert mark == "solid2px"
    assert stops == ["input", "input", "summary", "summary", "summary"]


def test_focus_is_not_hidden_by_the_controls_that_stay_in_view(opened: Any) -> None:
    page = opened(render_page(result(*[passage(f"Passage about {n}. " * 40) for n in range(12)])))
    for _ in range(14):
        page.keyboard.press("Tab")
    for _ in range(11):
        page.keyboard.press("Shift+Tab")
        summary = page.locator("summary:focus").bounding_box()
        tools = page.locator(".dah-tools").bounding_box()
        assert summary["y"] >= tools["y"] + tools["height"]
    for name in ("Passage 3", "Passage 7"):  # some browsers scroll no further than they must
        summary = page.locator("summary").filter(has_text=name)
        summary.evaluate("one => one.scrollIntoView()")
        tools = page.locator(".dah-tools").bounding_box()
        assert summary.bounding_box()["y"] >= tools["y"] + tools["height"]


# ---------------------------------------------------------------------- contrast

OTHER = {"light": "dark", "dark": "light"}


@THEMES
@pytest.mark.parametrize("place", ["page", "notebook", "paper"])
def test_every_text_is_readable(opened: Any, place: str, theme: str) -> None:
    """At least 4.5:1 (WCAG AA) in every view; in a notebook whose theme is not the system's; on paper."""
    found = result(*storm().passages, passage("never read"), passage(""), query="When was it opened?")
    if place == "notebook":
        page = opened(in_notebook(found, theme=theme), color_scheme=OTHER[theme])
    else:
        page = opened(render_page(found), color_scheme=theme)
        page.emulate_media(media="print" if place == "paper" else "screen")
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    is_light = page.locator(".dah").evaluate("one => getComputedStyle(one).getPropertyValue('--text')") == "#1b1d21"
    assert is_light is (theme == "light" or place == "paper")
    for view in ("kept and dropped", "kept only"):
        for heat in (True, False):
            if place != "paper":
                page.get_by_label(view).check()
                page.get_by_label("attention heat").set_checked(heat)
            texts = page.evaluate(CONTRASTS)
            assert [text for text in texts if text[0] < 4.5] == []
            drawn = {text[3] for text in texts}
            if view == "kept and dropped" and heat:
                assert {"k", "d", "dah-badge", *(f"a{n}" for n in range(1, LEVELS))} <= drawn
            if view == "kept only" and place != "paper":
                assert "d" not in drawn
                assert '"⋯"' in {text[4] for text in texts}


@THEMES
def test_dropped_text_is_fainter_than_kept_text_without_colour(opened: Any, theme: str) -> None:
    """Their inks are 3:1 apart: who sees no colour, or prints grey, can tell them from each other."""
    page = opened(render_page(storm()), color_scheme=theme)
    inks = page.evaluate(
        "() => ['.k', '.d'].map(c => getComputedStyle(document.querySelector('.dah-text ' + c)).color.match(/\\d+/g))"
    )
    kept, dropped = ("#" + "".join(f"{int(value):02x}" for value in ink) for ink in inks)
    assert contrast(kept, dropped) >= 3


# ---------------------------------------------------------------------- not by colour alone


@pytest.mark.parametrize("stretch", ["k", "d"])
def test_strong_heat_is_underlined(opened: Any, stretch: str) -> None:
    page = opened(render_page(storm()))
    widths = [
        float(
            page.locator(f".dah-text .{stretch} .a{level}").first.evaluate(
                "one => parseFloat(getComputedStyle(one).borderBottomWidth)"
            )
        )
        for level in range(2, LEVELS)
    ]
    assert widths[0] == 0
    assert widths == sorted(set(widths))
    # And the box ends at the same height for all, so that the text stays calm.
    ends = page.locator(f".dah-text .{stretch} span").evaluate_all(
        "all => all.map(one => { const s = getComputedStyle(one); "
        "return parseFloat(s.borderBottomWidth) + parseFloat(s.paddingBottom) })"
    )
    assert len(set(ends)) == 1


def test_scores_are_written(opened: Any) -> None:
    page = opened(render_page(storm()))
    for number, score in enumerate(("0.43", "0.21", "0.05"), 1):
        summary = page.locator("summary").filter(has_text=f"Passage {number}")
        assert f"score {score}" in summary.inner_text()
        assert "1,234 → 56 tokens" in summary.inner_text()
    # The bars beside them are decoration.
    assert page.locator(".dah-meter, .dah-bar").evaluate_all("all => all.every(one => one.ariaHidden === 'true')")


@THEMES
def test_forced_colours_still_tell_kept_from_dropped(opened: Any, theme: str) -> None:
    page = opened(render_page(storm()), color_scheme=theme, forced_colors="active")
    assert grounds(page, ".dah-text .k, .dah-text .k span").isdisjoint(grounds(page, ".dah-text .d, .dah-text .d span"))


# ---------------------------------------------------------------------- structure


def test_language_title_and_landmarks(opened: Any) -> None:
    page = opened(render_page(storm("Why is it red?")))
    assert page.title() == "Why is it red? | compressed passages"
    assert page.locator("html").get_attribute("lang") == "en"
    for role in ("banner", "main"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).all_inner_texts() == ["Why is it red?"]
    names = [name.strip() for name in page.get_by_role("heading", level=2).all_inner_texts()]
    assert names == ["Passage 1", "Passage 2", "Passage 3"]
    assert page.get_by_role("group", name="Show").get_by_role("radio").count() == 2


def test_view_in_a_notebook_is_a_named_region(opened: Any) -> None:
    page = opened(in_notebook(storm(), theme="light"))
    assert page.get_by_role("region", name="Compressed passages").count() == 1
    assert page.get_by_role("heading").count() == 0


# ---------------------------------------------------------------------- several on one page


def test_results_in_a_notebook_do_not_touch_each_other(opened: Any) -> None:
    """Two results, the second shown twice: each has its own switches."""
    page = opened(in_notebook(storm(), storm("Other?"), storm("Other?"), theme="light"))
    parts = page.locator(".dah").all()
    parts[1].get_by_label("kept only").check()
    parts[2].get_by_label("attention heat").uncheck()
    assert [shown(part) for part in parts] == [TEXTS[:2], KEPT, TEXTS[:2]]
    assert [grounds(part) == {CLEAR} for part in parts] == [False, False, True]
    parts[0].get_by_label("kept only").check()
    assert [part.get_by_label("kept only").is_checked() for part in parts] == [True, True, False]
    parts[0].get_by_label("kept only").press("ArrowRight")  # goes round inside its own form
    assert [part.get_by_label("kept and dropped").is_checked() for part in parts] == [True, False, True]
    assert page.locator("[id]").count() == 0
    # A notebook has no security policy: the forms themselves must send nothing.
    before = page.url
    parts[1].get_by_label("kept only").press("Enter")
    parts[1].locator("form").evaluate("form => form.requestSubmit()")
    page.wait_for_timeout(300)
    assert page.url == before
    assert parts[1].get_by_label("kept only").is_checked()


def test_style_stays_inside(opened: Any) -> None:
    """Elements around it look exactly as on a page without it."""
    around = (
        '<h1 class="k">Title</h1><p class="d">Text <b>bold</b> <mark class="k">marked</mark> <i class="a5">i</i></p>'
        '<fieldset><legend>L</legend><label><input type="radio" name="show" checked>x</label></fieldset>'
        "<details open><summary>S</summary>t</details><dl><dt>t</dt><dd>d</dd></dl><main>m</main><header>h</header>"
    )
    styles = """() => [...document.querySelectorAll('body, .around *')].map(one =>
      [null, '::before', '::after'].map(part => {
      const all = getComputedStyle(one, part);
      return [...all].filter(name => !/height|block-size|origin/.test(name)).map(name => all.getPropertyValue(name));
    }))"""
    looks = [
        opened(f'<!DOCTYPE html><body><div class="around">{around}</div>{inside}</body>').evaluate(styles)
        for inside in ("", render_fragment(storm()))
    ]
    assert looks[0] == looks[1]
    page = opened(f'<!DOCTYPE html><body><div class="around">{around}</div>{render_fragment(storm())}</body>')
    page.get_by_label("kept only").check()
    assert page.locator(".around input").is_checked()


@THEMES
@pytest.mark.parametrize(
    "switch",
    ['data-jp-theme-light="{is_light}"', 'class="vscode-{theme}"', 'data-theme="{theme}"'],
    ids=["jupyter", "vs code", "sphinx"],
)
def test_the_switch_of_the_notebook_beats_the_system(opened: Any, theme: str, switch: str) -> None:
    body = f"<body {switch.format(theme=theme, is_light=str(theme == 'light').lower())}>"
    page = opened(f"<!DOCTYPE html>{body}{render_fragment(storm())}</body>", color_scheme=OTHER[theme])
    drawn = page.locator(".dah").evaluate("one => getComputedStyle(one).backgroundColor")
    assert (drawn == "rgb(246, 246, 244)") is (theme == "light")


# ---------------------------------------------------------------------- texts of all kinds

HOSTILE = [
    "<b>bold</b> & &amp; &lt; \"quoted\" 'single' `tick`",
    "</div></details></main></style><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>",
    "<!-- never closed",
    "\u202eleft over\u2066 from nowhere",
    "a\x00b\x1b[31mc\ud800d",
    "C:\\path\\22ef \\ } .dah{display:none}",
]


@pytest.mark.parametrize(
    "render", [render_page, lambda found: in_notebook(found, theme="light")], ids=["page", "notebook"]
)
def test_special_characters_are_text(opened: Any, render: Any) -> None:
    passages = [passage(text, [(0, 3)], [(0, 2, 1.0), (2, 5, 0.3)]) for text in HOSTILE]
    found = CompressionResult(passages, HOSTILE[1], 9, 1, 5, HOSTILE[0], {HOSTILE[2]: 1.0}, HOSTILE[1], 3, Heatmap())
    page = opened(render(found), script=True)
    expected = [re.sub("[\x00\x1b\ud800]", "\ufffd", text) for text in HOSTILE]
    assert page.locator(".dah-text").evaluate_all("all => all.map(one => one.textContent)") == expected
    assert page.locator(".dah-query").text_content() == HOSTILE[1]
    assert "taken over" not in page.title().removesuffix(" | compressed passages").replace(HOSTILE[1], "")
    assert page.locator("img, script, b:not([style])").count() == 0
    assert page.locator(".dah-card").count() == len(HOSTILE)


def test_right_to_left_text(opened: Any) -> None:
    hebrew = "הגשר נפתח בשנת 1932. הוא צבוע אדום. רוכבים רבים חוצים אותו."
    arabic = "افتتح الجسر عام 1932. وهو مطلي باللون الأحمر."
    page = opened(
        render_page(result(passage(hebrew, [(0, 20)], [(0, 4, 1.0)]), passage(arabic), passage(TEXTS[0]), query=arabic))
    )
    directions = page.locator(".dah-text, .dah-query").evaluate_all(
        "all => all.map(o => getComputedStyle(o).direction)"
    )
    assert directions == ["rtl", "rtl", "rtl", "ltr"]
    box = page.locator(".dah-text").first.bounding_box()
    kept, dropped = (page.locator(f".dah-text .{name}").first.bounding_box() for name in ("k", "d"))
    assert box["x"] + box["width"] - (kept["x"] + kept["width"]) < 20  # begins at the right edge
    assert dropped["x"] < kept["x"]  # and reads to the left
    assert shown(page)[:2] == [hebrew, arabic]
    page.get_by_label("kept only").check()
    assert shown(page)[0] == hebrew[:20]


def test_emoji_and_joined_characters(opened: Any) -> None:
    """A family of three is five code points; heat that changes within does not tear the text."""
    text = "👩\u200d👩\u200d👧 e\u0301 हिन्दी 🇳🇴 👍🏽 سلام"
    torn = passage(text, heat=[(n, n + 1, float(n % 3)) for n in range(len(text))])
    page = opened(render_page(result(torn, passage(text))))
    assert shown(page) == [text, text]
    widths = page.locator(".dah-text > .k").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert widths[0] == pytest.approx(widths[1], abs=1)


@pytest.mark.parametrize(
    "passages",
    [
        pytest.param(lambda: [sentences(5000)], id="one passage"),
        pytest.param(lambda: [sentences(100, start=n) for n in range(50)], id="50 passages"),
        pytest.param(lambda: [sentences(1, start=n) for n in range(5000)], id="5000 passages"),
    ],
)
def test_five_thousand_sentences(opened: Any, passages: Callable[..., Any]) -> None:
    given = passages()
    page = opened(render_page(result(*given)))
    nodes = page.evaluate("document.querySelectorAll('*').length")
    assert nodes < 20_000 + 2 * 3400 + 14 * len(given) + 100
    page.get_by_label("kept only").check()
    first = page.locator(".dah-card").first
    assert first.locator(".d").count() == 0 or first.locator(".d").first.is_hidden()
    page.get_by_label("attention heat").uncheck()
    assert grounds(first) == {CLEAR}
    page.keyboard.press("End")
    sync_api.expect(page.locator(".dah-text .k").last).to_be_in_viewport()


def test_nothing_at_all(opened: Any) -> None:
    page = opened(render_page(CompressionResult([], "", 0, 0, 10, "t", {}, "d", 0, Heatmap())))
    assert page.get_by_text("There were no passages to compress.").is_visible()
    assert page.get_by_role("heading", level=1).inner_text() == "(no question)"
    assert page.get_by_role("radio").count() == 0


def test_draft_that_did_not_run(opened: Any) -> None:
    page = opened(render_page(result(passage(TEXTS[0]), draft_tokens=0)))
    assert page.get_by_text("Everything fitted the budget").is_visible()
    assert shown(page) == [TEXTS[0]]
    assert grounds(page, ".dah-text .k") == {CLEAR}


# ---------------------------------------------------------------------- sizes and paper


@pytest.mark.parametrize("width", [320, 390, 1600])
@pytest.mark.parametrize("place", ["page", "notebook"])
def test_no_sideways_scrolling(opened: Any, width: int, place: str) -> None:
    long = "x" * 400
    found = CompressionResult(
        [*storm().passages, passage(long, [(0, 200)]), passage(long, [])],
        long,
        10**9,
        10**8,
        10**9,
        long,
        {long: 1.0},
        long,
        9,
        Heatmap(),
    )
    page = opened(render_page(found) if place == "page" else in_notebook(found, theme="light"), width=width)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    for label in page.locator(".dah-tools label").all():
        assert label.bounding_box()["height"] >= 24  # what a finger can hit, WCAG 2.5.8


def test_paper(opened: Any) -> None:
    """White whatever the screen's theme is, without controls, and the view that was chosen."""
    from pypdf import PdfReader

    def printed(page: Any) -> str:
        reader = PdfReader(BytesIO(page.pdf()))
        return " ".join(" ".join(sheet.extract_text() for sheet in reader.pages).split())

    page = opened(render_page(storm()), color_scheme="dark")
    everything = printed(page)
    for expected in ("When was the bridge opened?", *TEXTS[:2], "Passage 3", "dropped", "score 0.43", "more attention"):
        assert expected in everything
    assert "kept only" not in everything
    page.get_by_label("kept only").check()
    short = printed(page)
    assert TEXTS[0][:30] in short
    assert "painted red" not in short
    page.emulate_media(media="print")
    assert page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".dah-tools").evaluate("one => getComputedStyle(one).position") == "static"


# ---------------------------------------------------------------------- the whole way


def test_page_written_by_the_command(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "heat.html"
    question = "On what date did the Candlemas Storm come?"
    done = run_here("ask", question, "--docs", DEMO / "docs", "--top-k", 4, "--max-tokens", 150, "--html", file)
    assert done.code == 0, done.err
    page = opened(url=file.as_uri(), script=True)
    assert page.title() == f"{question} | compressed passages"
    assert page.locator(".dah-card").count() == 4
    everything = "".join(shown(page))
    page.get_by_label("kept only").check()
    kept = "".join(shown(page))
    assert "2 February 1938" in kept
    assert len(kept) < 0.5 * len(everything)
    assert len(grounds(page)) == LEVELS - 1
    assert [text for text in page.evaluate(CONTRASTS) if text[0] < 4.5] == []
