"""Shows a compression result to people: what was kept, what was dropped, and where the draft model looked.

`render_page` makes a whole HTML document for a browser, `render_fragment` the same view for a notebook cell. Both are
self-contained: no script, no font, no image, nothing from the network. Passages are untrusted, so every text from the
result passes through `_clean` or `_escape`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import escape
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import CompressedPassage, CompressionResult

LEVELS = 6
# The attention of a few tokens dwarfs all others: the scale ends at this quantile, and all above it share its colour.
_TOP_QUANTILE = 0.98

# k0 ... k5 lie behind kept text; d2 ... d5 behind dropped text, paler so that the faded text stays readable.
LIGHT = {
    "page": "#f6f6f4", "card": "#ffffff", "line": "#e2e1dc", "text": "#1b1d21", "muted": "#5c626a", "accent": "#b45309",
    "k0": "#fff5dc", "k1": "#feebbd", "k2": "#fddf9b", "k3": "#fccb6a", "k4": "#f9b13f", "k5": "#f0932b",
    "d2": "#fdf5e6", "d3": "#fbeed5", "d4": "#fae7c6", "d5": "#f8e0b6",
}  # fmt: skip
DARK = {
    "page": "#131417", "card": "#1b1d21", "line": "#33363c", "text": "#f4f2ec", "muted": "#a0a6af", "accent": "#f5b04c",
    "k0": "#2e2a21", "k1": "#3f3420", "k2": "#55411d", "k3": "#6d4d19", "k4": "#865715", "k5": "#9c5d0f",
    "d2": "#27241f", "d3": "#2e2920", "d4": "#362e20", "d5": "#3e3320",
}  # fmt: skip


def _variables(theme: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in theme.items())


# Every rule is about .dah: in a notebook this sheet must touch nothing else, and may be there several times. The
# classes have that prefix, too, as .card, .badge or .h1 would get the style of a Bootstrap around the notebook.
# Dark is for screens only, so that paper gets the light theme. Notebooks have their own switch, which beats the system.
_CSS = (
    ".dah{" + _variables(LIGHT) + "color-scheme:light dark}"
    "@media screen{@media (prefers-color-scheme:dark){.dah{" + _variables(DARK) + "}}"
    '[data-jp-theme-light="true"] .dah{' + _variables(LIGHT) + "color-scheme:light}"
    '[data-jp-theme-light="false"] .dah{'
    + _variables(DARK)
    + "color-scheme:dark}}"
    + "".join(f".dah .k .a{n},.dah .dah-key .k{n}{{background:var(--k{n})}}" for n in range(LEVELS))
    + "".join(f".dah .d .a{n}{{background:var(--d{n})}}" for n in range(2, LEVELS))
    + """
.dah,.dah *{box-sizing:border-box}
.dah{max-width:56rem;margin:0 auto;padding:1.5rem;background:var(--page);color:var(--text);
font:400 1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;text-align:start}
div.dah{border-radius:.5rem}
.dah .dah-eyebrow{margin:0;color:var(--accent);font-size:.8125rem;font-weight:600;letter-spacing:.02em}
.dah .dah-query{margin:.125rem 0 1rem;font-size:1.5rem;font-weight:650;line-height:1.3;overflow-wrap:anywhere;
white-space:pre-wrap}
.dah .dah-facts{display:flex;flex-wrap:wrap;gap:.75rem 2.5rem;margin:0 0 1rem}
.dah .dah-facts div{min-width:0}
.dah .dah-facts dt,.dah .dah-facts dd{float:none;width:auto}
.dah .dah-facts dt{margin:0;padding:0;color:var(--muted);font-size:.8125rem;font-weight:400}
.dah .dah-facts dd{margin:0;padding:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.dah .dah-times span{display:inline-block;margin-inline-end:1rem}
.dah .dah-bar{height:.25rem;margin:0 0 1rem;border-radius:1rem;background:var(--line);overflow:hidden}
.dah .dah-bar div{height:100%;background:var(--accent)}
.dah .dah-tools{display:flex;flex-wrap:wrap;gap:.5rem 1.75rem;align-items:center;margin:0 0 1rem;font-size:.875rem}
.dah .dah-tools fieldset{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:0;padding:0;border:0}
.dah .dah-tools legend{float:left;padding:0;color:var(--muted)}
.dah .dah-tools label{display:inline-flex;gap:.375rem;align-items:center;cursor:pointer}
.dah .dah-tools input{width:1rem;height:1rem;margin:0;accent-color:var(--accent);cursor:pointer}
.dah .dah-keys{display:flex;flex-wrap:wrap;gap:.25rem 1.75rem;flex-basis:100%;color:var(--muted)}
.dah .dah-key{display:inline-flex;gap:.5rem;align-items:center}
.dah .dah-key .dah-scale{display:inline-flex;border:1px solid var(--line);border-radius:.25rem;overflow:hidden}
.dah .dah-key i{width:1.375rem;height:.875rem}
.dah .dah-key b{padding:0 .35em;font-weight:400;color:var(--text);background:var(--k1)}
.dah .dah-note{margin:0 0 1rem;padding:.625rem .875rem;border-inline-start:3px solid var(--accent);
background:var(--card);border-radius:.25rem}
.dah .dah-card{margin:0 0 .75rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
.dah summary{display:flex;flex-wrap:wrap;gap:0 1rem;align-items:baseline;padding:.625rem 1rem;cursor:pointer;
font-size:.875rem;color:var(--muted);list-style:none;font-variant-numeric:tabular-nums}
.dah summary::-webkit-details-marker{display:none}
.dah summary::after{content:"";width:.4rem;height:.4rem;margin-inline-start:auto;align-self:center;
border:solid;border-width:0 1.5px 1.5px 0;transform:rotate(45deg)}
.dah [open]>summary::after{transform:rotate(-135deg)}
.dah [open]>summary{border-bottom:1px solid var(--line)}
.dah .dah-name{margin:0;font-size:.9375rem;font-weight:650;line-height:inherit;color:var(--text)}
.dah .dah-badge{padding:0 .5rem;border:1px solid var(--line);border-radius:1rem;font-size:.8125rem}
.dah .dah-text{padding:.875rem 1rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;
unicode-bidi:plaintext;color:var(--text)}
.dah .dah-text .k{color:inherit;background:none}
.dah .d{color:var(--muted)}
.dah .dah-text *{padding:2px 0}
.dah :focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:.25rem}
.dah:has(.dah-only:checked) .d,.dah:has(.dah-only:checked) .dah-none{display:none}
.dah:has(.dah-only:checked) .d+.k::before{content:"\\22ef";padding:2px .4em;background:var(--card);color:var(--muted)}
.dah:has(.dah-heat:not(:checked)) :is(.dah-text *,.dah-key b){background:none}
.dah:has(.dah-heat:not(:checked)) .dah-scale-key{visibility:hidden}
@supports not selector(:has(a)){.dah .dah-tools fieldset{display:none}}
@media (max-width:30rem){.dah{padding:1rem .75rem}.dah .dah-query{font-size:1.25rem}
.dah summary,.dah .dah-text{padding-inline:.75rem}}
@media (forced-colors:active){.dah .k,.dah .dah-text .k *{forced-color-adjust:none;background:Mark;color:MarkText}}
@media print{.dah{max-width:none;padding:0;background:none;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.dah .dah-tools fieldset{display:none}.dah summary{break-after:avoid}}
"""
)
_CONTROLS = (
    '<fieldset><legend>Show</legend><label><input type="radio" name="show" class="dah-all" checked>all text</label>'
    '<label><input type="radio" name="show" class="dah-only">only kept text</label></fieldset>'
)
_HEAT_CONTROL = (
    '<fieldset aria-label="Heat"><label><input type="checkbox" class="dah-heat" checked>attention heat</label>'
    "</fieldset>"
)
_KEY = '<span class="dah-key"><b>kept text</b><span>dropped text</span></span>'
_HEAT_KEY = (
    '<span class="dah-key dah-scale-key">less<span class="dah-scale" aria-hidden="true">'
    + "".join(f'<i class="k{n}"></i>' for n in range(LEVELS))
    + "</span>more attention</span>"
)

# Whatever UTF-8 or HTML cannot carry, or would act on instead of showing. "\r" is dealt with in `_clean`.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
_RUN = re.compile(rb"(.)\1*", re.DOTALL)


def render_page(result: CompressionResult) -> str:
    """Renders a result as an HTML document that stands alone.

    Args:
        result: What `SpecPC.compress` returned.

    Returns:
        The document, with controls to hide the dropped text and the heat. It can always be encoded as UTF-8.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Nothing on this page may load or run, whatever the passages hold.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_escape(result.query)} | compressed passages</title>\n<style>{_CSS}</style>\n</head>\n"
        f'<body class="dah">\n<main>\n{_body(result, page=True)}</main>\n</body>\n</html>\n'
    )


def render_fragment(result: CompressionResult) -> str:
    """Renders a result for a notebook cell: the look of the page without its controls.

    Args:
        result: What `SpecPC.compress` returned.

    Returns:
        One <div>. It has no ids and styles nothing outside itself, so a notebook may show any number of them.
    """
    return f'<div class="dah" lang="en"><style>{_CSS}</style>\n{_body(result, page=False)}</div>\n'


def _body(result: CompressionResult, *, page: bool) -> str:
    # Headings of a fragment would turn up in the notebook's table of contents.
    title, name = ("h1", "h2") if page else ("div", "span")
    scale = _scale(result)
    parts = [
        f'<header>\n<p class="dah-eyebrow">Compressed passages</p>\n'
        f'<{title} class="dah-query" dir="auto" lang="">{_escape(result.query)}</{title}>\n{_facts(result)}</header>\n'
    ]
    if result.draft_tokens or scale:
        controls = _CONTROLS + (_HEAT_CONTROL if scale else "") if page else ""
        parts.append(
            f'<div class="dah-tools">{controls}<div class="dah-keys">{_KEY}{_HEAT_KEY if scale else ""}</div></div>\n'
        )
    else:
        parts.append('<p class="dah-note">Everything fitted the budget; the draft did not run.</p>\n')
    parts += [_card(number, passage, scale, name) for number, passage in enumerate(result.passages, 1)]
    return "".join(parts)


def _facts(result: CompressionResult) -> str:
    share = f" ({result.ratio:.1%})" if result.tokens_before else ""
    times = "".join(f"<span>{_escape(step)} {_duration(seconds)}</span>" for step, seconds in result.timings.items())
    facts = {
        "Tokens": f"{result.tokens_before:,} → {result.tokens_after:,}{share}",
        "Budget": f"{result.budget:,}",
        "Draft": _escape(_short(result.draft)),
        "Tokens counted with": _escape(_short(result.tokenizer)),
        "Time": f'<span class="dah-times">{times}</span>',
    }
    rows = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts.items())
    width = min(100.0, 100 * result.ratio)
    return f'<dl class="dah-facts">{rows}</dl>\n<div class="dah-bar"><div style="width:{width:.1f}%"></div></div>\n'


def _card(number: int, passage: CompressedPassage, scale: float, name: str) -> str:
    state = "empty" if not passage.original else "" if passage.kept else "dropped"
    opening = '<details class="dah-card dah-none">' if state else '<details class="dah-card" open>'
    badge = f'<span class="dah-badge">{state}</span>' if state else ""
    score = f"<span>score {passage.score:.3g}</span>" if math.isfinite(passage.score) else ""
    return (
        f'{opening}<summary><{name} class="dah-name">Passage {number}</{name}>{badge}'
        f"<span>{passage.tokens_before:,} → {passage.tokens_after:,} tokens</span>{score}</summary>\n"
        # The passage may be in any language; lang="" says so to screen readers.
        f'<div class="dah-text" dir="auto" lang="">{_marked_up(passage, scale)}</div></details>\n'
    )


def _marked_up(passage: CompressedPassage, scale: float) -> str:
    """The original, in one element per kept or dropped stretch, and in these one per stretch of equal heat."""
    text = _clean(passage.original)
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
    parts: list[str] = []
    for is_kept, start, end in _runs(kept, 0, len(text)):
        parts.append('<mark class="k">' if is_kept else '<span class="d">')
        for level, begin, stop in _runs(levels, start, end):
            piece = escape(text[begin:stop]).replace("\r", "")
            heated = scale and (is_kept or level > 1)  # dropped text shows only clear heat
            parts.append(f'<span class="a{level}">{piece}</span>' if heated else piece)
        parts.append("</mark>" if is_kept else "</span>")
    return "".join(parts)


def _fill(values: bytearray, start: int, end: int, value: int) -> None:
    start, end = max(0, start), min(end, len(values))
    if start < end:
        values[start:end] = bytes([value]) * (end - start)


def _runs(values: bytearray, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    for run in _RUN.finditer(values, start, end):
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
