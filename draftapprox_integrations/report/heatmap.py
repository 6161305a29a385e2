"""Shows a compression result to people: what was kept, what was dropped, and where the draft model looked.

`render_page` makes a whole HTML document for a browser, `render_fragment` the same view for a notebook cell. Both are
self-contained: no script, no font, no image, nothing from the network. Passages are untrusted, so every text from the
result passes through `_clean` or `_escape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import PurePosixPath, PureWindowsPath

from ..results import CompressedPassage, CompressionResult
from .style import CSS, LEVELS

# (level, start, end): characters of equal heat. A stretch is all kept or all dropped.
_Run = tuple[int, int, int]
_Stretch = tuple[bool, list[_Run]]

# The attention of a few tokens dwarfs all others: the scale ends at this quantile, and all above it share its colour.
_TOP_QUANTILE = 0.98
_MOST_RUNS = 20_000  # a browser stays quick up to here; beyond, neighbouring heat is averaged
_MOST_SEGMENTS = 60  # of the bar that shows each passage's share
_MANY_CARDS = 100  # from here on the browser lays out only the cards in view
_PREVIEW = 120  # characters

# Radio buttons exclude each other within their form only, so that several results on one page stay apart without ids.
# A form of this method sends nothing when Enter is pressed.
_CONTROLS = '<form class="dah-tools" method="dialog">{}</form>\n'
# Without it JupyterLab takes Enter, Space and the arrow keys for its own. It looks at the focused element only.
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

# Whatever UTF-8 or HTML cannot carry, or would act on instead of showing. "\r" is dealt with in `_clean`.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
_EQUAL = re.compile(rb"(.)\1*", re.DOTALL)


@dataclass(frozen=True)
class Heatmap:
    """The renderer of `CompressionResult`: `page` is `render_page`, `fragment` is `render_fragment`."""

    def page(self, result: CompressionResult) -> str:
        """A whole HTML document."""
        return render_page(result)

    def fragment(self, result: CompressionResult) -> str:
        """The same view for a notebook cell."""
        return render_fragment(result)


def render_page(result: CompressionResult) -> str:
    """Renders a result as an HTML document that stands alone.

    Args:
        result: What `SpecPC.compress` returned.

    Returns:
        The document, with controls to hide the dropped text and the heat. It can always be encoded as UTF-8.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Nothing on this page may load, run or be sent, whatever the passages hold.
        '<meta http-equiv="Content-Security-Policy" content="'
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_escape(result.query)} | compressed passages</title>\n<style>{CSS}</style>\n</head>\n"
        f'<body class="{_classes(result)}">\n{_header(result, "h1")}<main>\n{_main(result, "h2")}</main>\n'
        "</body>\n</html>\n"
    )


def render_fragment(result: CompressionResult) -> str:
    """Renders a result for a notebook cell: the page without the document around it.

    Args:
        result: What `SpecPC.compress` returned.

    Returns:
        One <section>. It has no ids and styles nothing outside itself, so a notebook may show any number of them.
    """
    return (
        f'<section class="{_classes(result)}" lang="en" aria-label="Compressed passages"><style>{CSS}</style>\n'
        # Headings would turn up in the notebook's table of contents.
        f"{_header(result, 'div')}<div>\n{_main(result, 'span')}</div>\n</section>\n"
    )


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
    """A segment per passage, as long as the passage and filled as far as it was kept. The cards say it in words."""
    parts = [(p.tokens_before, p.tokens_after) for p in result.passages if p.tokens_before]
    if not 1 <= len(parts) <= _MOST_SEGMENTS:
        parts = [(result.tokens_before, result.tokens_after)] if result.tokens_before else []
    segments = "".join(f'<i style="flex-grow:{before}">{_filled(after / before)}</i>' for before, after in parts)
    return f'<div class="dah-bar" aria-hidden="true">{segments}</div>\n' if segments else ""


def _filled(share: float) -> str:
    return f'<b style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></b>'


def _main(result: CompressionResult, name: str) -> str:
    if not result.passages:
        return _NO_PASSAGES
    scale = _scale(result)
    texts = [_clean(passage.original) for passage in result.passages]
    found = [_stretches(text, passage, scale) for text, passage in zip(texts, result.passages, strict=True)]
    many = sum(len(runs) for stretches in found for _, runs in stretches)
    group = math.ceil(many / _MOST_RUNS) if scale else 1
    if group > 1:
        found = [[(is_kept, _averaged(runs, group)) for is_kept, runs in stretches] for stretches in found]
    parts = []
    if result.draft_tokens or scale:
        keys = f'<div class="dah-keys">{_KEY}{_HEAT_KEY if scale else ""}</div>'
        parts.append(_CONTROLS.format(_SHOW + (_HEAT if scale else "") + keys))
        parts.append(_COARSE if group > 1 else "")
        parts.append("" if any(passage.kept for passage in result.passages) else _NOTHING_KEPT)
    else:
        parts.append(_FITTED)
    top = max((p.score for p in result.passages if math.isfinite(p.score)), default=0.0)
    for number, (passage, text, stretches) in enumerate(zip(result.passages, texts, found, strict=True), 1):
        parts.append(_card(number, passage, _marked_up(text, stretches), top, name))
    return "".join(parts)


def _card(number: int, passage: CompressedPassage, marked_up: str, top: float, name: str) -> str:
    state = "empty" if not passage.original else "" if passage.kept else "dropped"
    opening = '<details class="dah-card dah-none">' if state else '<details class="dah-card" open>'
    badge = f'<span class="dah-badge">{state}</span>' if state else ""
    score = ""
    if math.isfinite(passage.score):
        meter = f'<i class="dah-meter" aria-hidden="true">{_filled(passage.score / top)}</i>' if top > 0 else ""
        score = f"<span>score {passage.score:.3g}{meter}</span>"
    preview = " ".join(passage.original[: 2 * _PREVIEW].split())[:_PREVIEW]
    preview += "…" if len(passage.original) > _PREVIEW else ""
    return (
        f'{opening}<summary {_OWN_KEYS}><{name} class="dah-name">Passage {number}</{name}>{badge}'
        f"<span>{passage.tokens_before:,} → {passage.tokens_after:,} tokens</span>{score}"
        f'<span class="dah-preview" dir="auto" lang="">{_escape(preview)}</span></summary>\n'
        # The passage may be in any language; lang="" says so to screen readers.
        f'<div class="dah-text" dir="auto" lang="">{marked_up}</div></details>\n'
    )


def _stretches(text: str, passage: CompressedPassage, scale: float) -> list[_Stretch]:
    kept, levels = bytearray(len(text)), bytearray(len(text))
    for start, end in passage.kept:
        _fill(kept, start, end, 1)
    # Tokens overlap where a character has several: the hottest comes last and wins.
    for start, end, score in sorted(passage.heat, key=lambda token: _level(token[2], scale)):
        _fill(levels, start, end, _level(score, scale))
    # A token brings the space before it along: between words of different heat it belongs to the cooler one.
    for space in _SPACE.finditer(text):
        start, end = space.span()
        _fill(levels, start, end, min(levels[start - 1], levels[end]))
    return [(bool(is_kept), list(_runs(levels, start, end))) for is_kept, start, end in _runs(kept, 0, len(text))]


def _marked_up(text: str, stretches: list[_Stretch]) -> str:
    """The text, in one element per kept or dropped stretch, and in these one per stretch of equal heat."""
    parts: list[str] = []
    for is_kept, runs in stretches:
        parts.append('<mark class="k">' if is_kept else '<span class="d">')
        for level, start, end in runs:
            piece = escape(text[start:end]).replace("\r", "")
            # Kept text is as warm as level 0 without an element; dropped text shows only clear heat.
            parts.append(f'<span class="a{level}">{piece}</span>' if level > (0 if is_kept else 1) else piece)
        parts.append("</mark>" if is_kept else "</span>")
    return "".join(parts)


def _averaged(runs: list[_Run], group: int) -> list[_Run]:
    """Runs in fewer pieces: the mean heat of `group` neighbours."""
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
    """The score from which on the heat is at its strongest; 0 if there is no heat."""
    scores = sorted(
        score for passage in result.passages for _, _, score in passage.heat if score > 0 and math.isfinite(score)
    )
    return scores[math.ceil(_TOP_QUANTILE * (len(scores) - 1))] if scores else 0.0


def _level(score: float, scale: float) -> int:
    if not (score > 0 and scale > 0):  # NaN, too, ends here
        return 0
    # The square root spreads out the many small scores, which a linear scale would all show alike.
    return min(LEVELS - 1, int(LEVELS * math.sqrt(min(1.0, score / scale))))


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _short(name: str) -> str:
    """The last part of an absolute path: the rest is long, and nobody else's business on a page that is sent on."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute():
            return path.name
    return name


def _clean(text: str) -> str:
    r"""What can be shown, of the same length. "\r" is left only before "\n", to be taken out after slicing."""
    return re.sub("\r(?!\n)", "\n", _UNSHOWABLE.sub("\ufffd", text))


def _escape(text: str) -> str:
    return escape(_clean(text)).replace("\r", "")
