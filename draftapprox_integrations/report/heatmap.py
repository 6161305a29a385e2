"""Heat map of a compression result as HTML: kept spans, dropped spans, and the score of each token.

`render_page` returns a whole document for a browser, `render_fragment` the same view for a notebook cell. Both are
self-contained: no script, no font, no image, no request. Passages are untrusted, so every text of the result passes
through `_clean` or `_escape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import PurePosixPath, PureWindowsPath

from ..errors import InvalidInputError
from ..results import CompressedPassage, CompressionResult
from .style import CSS, LEVELS

_Run = tuple[int, int, int]  # (level, start, end): characters of equal heat
_Span = tuple[bool, list[_Run]]  # (kept?, its runs): a kept or a dropped span

# A few scores dwarf all others: the colour scale ends at this quantile, and higher scores share the last colour.
_TOP_QUANTILE = 0.98
_MAX_RUNS = 20_000  # browsers stay quick up to this many elements; beyond, neighbouring runs are averaged
_MAX_SEGMENTS = 60  # segments of the bar; with more passages it has one segment for all
_MANY_CARDS = 100  # from this many on, the browser lays out only the cards in view
_PREVIEW = 120  # characters of a collapsed card's text

# Radio buttons exclude each other within a form, so each result has a form of its own and needs no ids.
# A form with method=dialog sends nothing when Enter is pressed.
_CONTROLS = '<form class="dah-tools" method="dialog">{}</form>\n'
# Without this attribute on the focused element, JupyterLab handles Enter, Space and the arrow keys itself.
_OWN_KEYS = "data-lm-suppress-shortcuts"
_SHOW = (
    f'<fieldset><legend>Show</legend><label><input type="radio" name="show" class="dah-all" {_OWN_KEYS} checked>'
    f'kept and dropped</label><label><input type="radio" name="show" class="dah-only" {_OWN_KEYS}>kept only</label>'
    "</fieldset>"
)
_HEAT = (
    f'<fieldset aria-label="Heat"><label><input type="checkbox" class="dah-heat" {_OWN_KEYS} checked>attention heat'
    "</label></fieldset>"
)
_KEY = '<span class="dah-key"><mark class="k">kept text</mark><span class="d">dropped text</span></span>'
_HEAT_KEY = (
    '<span class="dah-key dah-scale-key">less<span class="dah-scale" aria-hidden="true">'
    + "".join(f'<i class="k{n}"></i>' for n in range(LEVELS))
    + "</span>more attention</span>"
)
_FITTED = '<p class="dah-note">Everything fitted the budget; the draft did not run.</p>\n'
_NO_PASSAGES = '<p class="dah-note">There were no passages to compress.</p>\n'
_NOTHING_KEPT = '<p class="dah-note">Nothing was kept of any passage.</p>\n'
_COARSE = '<p class="dah-note">This is a long text: its heat is averaged over neighbouring words.</p>\n'

# Characters that UTF-8 or HTML cannot represent, or that act instead of showing. `_clean` handles "\r".
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
_EQUAL = re.compile(rb"(.)\1*", re.DOTALL)


def render_page(
    result: CompressionResult,
    answers: Mapping[str, str] | None = None,
    sources: Sequence[str | None] | None = None,
) -> str:
    """Render a result as a self-contained HTML document.

    Args:
        result: Result of `SpecPC.compress`.
        answers: Answers to show above the passages, by their heading.
        sources: Per passage where it comes from, or None.

    Returns:
        The document, with controls to hide the dropped text and the heat. It always encodes as UTF-8.

    Raises:
        InvalidInputError: another number of sources than passages.
    """
    if sources is None:
        sources = [None] * len(result.passages)
    if len(sources) != len(result.passages):
        raise InvalidInputError(f"there are {len(result.passages)} passages and {len(sources)} sources")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # The policy forbids to load, run or send anything, whatever the passages contain.
        '<meta http-equiv="Content-Security-Policy" content="'
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_escape(result.query)} | compressed passages</title>\n<style>{CSS}</style>\n</head>\n"
        f'<body class="{_classes(result)}">\n{_header(result, "h1")}<main>\n'
        f"{_answers(answers or {})}{_main(result, sources, 'h2')}</main>\n"
        "</body>\n</html>\n"
    )


def render_fragment(result: CompressionResult) -> str:
    """Render a result for a notebook cell: the view of `render_page` without the document around it.

    Args:
        result: Result of `SpecPC.compress`.

    Returns:
        One <section> without ids whose styles apply inside it only, so a notebook can show any number of them.
    """
    return (
        f'<section class="{_classes(result)}" lang="en" aria-label="Compressed passages"><style>{CSS}</style>\n'
        # Headings would turn up in the notebook's table of contents.
        f"{_header(result, 'div')}<div>\n{_main(result, [None] * len(result.passages), 'span')}</div>\n</section>\n"
    )


@dataclass(frozen=True)
class Heatmap:
    """Renderer that a `CompressionResult` calls for `to_html` and in notebooks."""

    page = staticmethod(render_page)
    fragment = staticmethod(render_fragment)


def _classes(result: CompressionResult) -> str:
    whole = not result.draft_tokens and not _scale(result)
    return "dah" + (" dah-whole" if whole else "") + (" dah-many" if len(result.passages) >= _MANY_CARDS else "")


def _header(result: CompressionResult, title: str) -> str:
    share = f" ({result.keep_ratio:.1%})" if result.tokens_before else ""
    times = "".join(f"<span>{_escape(step)} {_duration(seconds)}</span>" for step, seconds in result.timings.items())
    facts = {
        "Tokens": f"{result.tokens_before:,} → {result.tokens_after:,}{share}",
        "Budget": f"{result.budget:,}",
        "Draft": _escape(_short(result.draft)),
        "Tokens counted with": _escape(_short(result.tokenizer)),
        "Time": f'<span class="dah-times">{times}</span>' if times else "",
    }
    rows = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts.items() if value)
    return (
        '<header>\n<p class="dah-eyebrow">Compressed passages</p>\n'
        f'<{title} class="dah-query" dir="auto" lang="">{_escape(result.query) or "(no question)"}</{title}>\n'
        f'<dl class="dah-facts">{rows}</dl>\n{_bar(result)}</header>\n'
    )


def _bar(result: CompressionResult) -> str:
    """Draw a bar with a segment per passage: its length is the passage's, its filled part the share kept.

    Screen readers skip it: the cards have the same numbers as text.
    """
    parts = [(p.tokens_before, p.tokens_after) for p in result.passages if p.tokens_before]
    if not 1 <= len(parts) <= _MAX_SEGMENTS:
        parts = [(result.tokens_before, result.tokens_after)] if result.tokens_before else []
    segments = "".join(f'<i style="flex-grow:{before}">{_filled(after / before)}</i>' for before, after in parts)
    return f'<div class="dah-bar" aria-hidden="true">{segments}</div>\n' if segments else ""


def _filled(share: float) -> str:
    return f'<b style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></b>'


def _answers(answers: Mapping[str, str]) -> str:
    return "".join(
        f'<section class="dah-answer"><h2 class="dah-name">{_escape(heading)}</h2>'
        f'<p dir="auto" lang="">{_escape(text)}</p></section>\n'
        for heading, text in answers.items()
    )


def _main(result: CompressionResult, sources: Sequence[str | None], name: str) -> str:
    if not result.passages:
        return _NO_PASSAGES
    scale = _scale(result)
    texts = [_clean(passage.original) for passage in result.passages]
    found = [_spans(text, passage, scale) for text, passage in zip(texts, result.passages, strict=True)]
    many = sum(len(runs) for spans in found for _, runs in spans)
    group = math.ceil(many / _MAX_RUNS) if scale else 1
    if group > 1:
        found = [[(is_kept, _averaged(runs, group)) for is_kept, runs in spans] for spans in found]
    parts = []
    if result.draft_tokens or scale:
        keys = f'<div class="dah-keys">{_KEY}{_HEAT_KEY if scale else ""}</div>'
        parts.append(_CONTROLS.format(_SHOW + (_HEAT if scale else "") + keys))
        parts.append(_COARSE if group > 1 else "")
        parts.append("" if any(passage.kept for passage in result.passages) else _NOTHING_KEPT)
    else:
        parts.append(_FITTED)
    top = max((p.score for p in result.passages if math.isfinite(p.score)), default=0.0)
    columns = zip(result.passages, sources, texts, found, strict=True)
    for number, (passage, source, text, spans) in enumerate(columns, 1):
        parts.append(_card(number, passage, source, _marked_up(text, spans), top, name))
    return "".join(parts)


def _card(number: int, passage: CompressedPassage, source: str | None, marked_up: str, top: float, name: str) -> str:
    state = "empty" if not passage.original else "" if passage.kept else "dropped"
    opening = '<details class="dah-card dah-none">' if state else '<details class="dah-card" open>'
    badge = f'<span class="dah-badge">{state}</span>' if state else ""
    score = ""
    if math.isfinite(passage.score):
        meter = f'<i class="dah-meter" aria-hidden="true">{_filled(passage.score / top)}</i>' if top > 0 else ""
        score = f"<span>score {passage.score:.3g}{meter}</span>"
    title = f'<bdi class="dah-title" lang="">{_escape(passage.title)}</bdi>' if passage.title else ""
    if source and source != passage.title:
        title += f'<bdi class="dah-source" lang="">{_escape(source)}</bdi>'
    preview = " ".join(passage.original[: 2 * _PREVIEW].split())[:_PREVIEW]
    preview += "…" if len(passage.original) > _PREVIEW else ""
    return (
        f'{opening}<summary {_OWN_KEYS}><{name} class="dah-name">Passage {number}</{name}>{title}{badge}'
        f"<span>{passage.tokens_before:,} → {passage.tokens_after:,} tokens</span>{score}"
        f'<span class="dah-preview" dir="auto" lang="">{_escape(preview)}</span></summary>\n'
        # lang="" tells screen readers that the language of the passage is unknown.
        f'<div class="dah-text" dir="auto" lang="">{marked_up}</div></details>\n'
    )


def _spans(text: str, passage: CompressedPassage, scale: float) -> list[_Span]:
    kept, levels = bytearray(len(text)), bytearray(len(text))
    for start, end in passage.kept:
        _fill(kept, start, end, 1)
    # Tokens of one character overlap: the hottest is written last and wins.
    for start, end, score in sorted(passage.heat, key=lambda token: _level(token[2], scale)):
        _fill(levels, start, end, _level(score, scale))
    # A token includes the space before it: between words of different heat, give the space to the cooler one.
    for space in _SPACE.finditer(text):
        start, end = space.span()
        _fill(levels, start, end, min(levels[start - 1], levels[end]))
    return [(bool(is_kept), list(_runs(levels, start, end))) for is_kept, start, end in _runs(kept, 0, len(text))]


def _marked_up(text: str, spans: list[_Span]) -> str:
    """Mark up the text: one element per kept or dropped span, inside it one per run of equal heat."""
    parts: list[str] = []
    for is_kept, runs in spans:
        parts.append('<mark class="k">' if is_kept else '<span class="d">')
        for level, start, end in runs:
            piece = escape(text[start:end]).replace("\r", "")
            # Kept text has the colour of level 0 without an element; dropped text shows no heat below level 2.
            parts.append(f'<span class="a{level}">{piece}</span>' if level > (0 if is_kept else 1) else piece)
        parts.append("</mark>" if is_kept else "</span>")
    return "".join(parts)


def _averaged(runs: list[_Run], group: int) -> list[_Run]:
    """Return fewer runs: each has the mean level of `group` neighbours."""
    coarse = []
    for first in range(0, len(runs), group):
        part = runs[first : first + group]
        start, end = part[0][1], part[-1][2]
        coarse.append((round(sum(level * (b - a) for level, a, b in part) / (end - start)), start, end))
    joined = []
    for level, same in groupby(coarse, key=lambda run: run[0]):
        pieces = list(same)
        joined.append((level, pieces[0][1], pieces[-1][2]))
    return joined


def _fill(values: bytearray, start: int, end: int, value: int) -> None:
    start, end = max(0, start), min(end, len(values))
    if start < end:
        values[start:end] = bytes([value]) * (end - start)


def _runs(values: bytearray, start: int, end: int) -> Iterator[_Run]:
    for run in _EQUAL.finditer(values, start, end):
        yield values[run.start()], run.start(), run.end()


def _scale(result: CompressionResult) -> float:
    """Return the score at which the colour scale ends; 0 if no token has a positive score."""
    scores = sorted(
        score for passage in result.passages for _, _, score in passage.heat if score > 0 and math.isfinite(score)
    )
    return scores[math.ceil(_TOP_QUANTILE * (len(scores) - 1))] if scores else 0.0


def _level(score: float, scale: float) -> int:
    if not (score > 0 and scale > 0):  # true for NaN, too
        return 0
    # The square root spreads the many small scores, which would all share a level on a linear scale.
    return min(LEVELS - 1, int(LEVELS * math.sqrt(min(1.0, score / scale))))


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _short(name: str) -> str:
    """Return the last part of an absolute path: a shared page must not show the folders of its author."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute():
            return path.name
    return name


def _clean(text: str) -> str:
    r"""Replace unshowable characters one by one, so that spans stay true; keep "\r" only before "\n", for `_escape`."""
    return re.sub("\r(?!\n)", "\n", _UNSHOWABLE.sub("\ufffd", text))


def _escape(text: str) -> str:
    return escape(_clean(text)).replace("\r", "")
