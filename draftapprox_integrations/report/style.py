"""Style sheet of the heat map: light and dark palettes, and the rules that `heatmap` embeds.

Every selector starts at .dah, because in a notebook the sheet must style nothing else and may occur several times. The
classes have the prefix, too: a Bootstrap theme around the notebook would style .card, .badge or .h1.
"""

from __future__ import annotations

LEVELS = 6
_UNDERLINE = 3  # number of underlined levels, and the thickest underline in pixels

# k0 ... k5 are the backgrounds of kept text, d2 ... d5 those of dropped text, paler so that the faded text stays
# readable. `text` and `faded` have a contrast of 3:1, so kept and dropped text differ without colour, too.
LIGHT = {
    "page": "#f6f6f4", "card": "#ffffff", "line": "#e2e1dc", "edge": "#82868c", "text": "#1b1d21", "muted": "#5c626a",
    "faded": "#666b73", "accent": "#b45309",
    "k0": "#fff5dc", "k1": "#feebbd", "k2": "#fddf9b", "k3": "#fccb6a", "k4": "#f9b13f", "k5": "#f0932b",
    "d2": "#fefbf5", "d3": "#fdf7ec", "d4": "#fdf4e3", "d5": "#fbf0da",
}  # fmt: skip
DARK = {
    "page": "#131417", "card": "#1b1d21", "line": "#33363c", "edge": "#7d838c", "text": "#f4f2ec", "muted": "#a0a6af",
    "faded": "#858b94", "accent": "#f5b04c",
    "k0": "#2e2a21", "k1": "#3f3420", "k2": "#55411d", "k3": "#6d4d19", "k4": "#865715", "k5": "#9c5d0f",
    "d2": "#1d1e21", "d3": "#1f1f20", "d4": "#22201e", "d5": "#25221d",
}  # fmt: skip

# The theme switches of JupyterLab, VS Code, Colab and Sphinx take precedence over the system's.
_LIGHT_SWITCH = ':is([data-jp-theme-light="true"],.vscode-light,html[theme="light"],[data-theme="light"])'
_DARK_SWITCH = ':is([data-jp-theme-light="false"],.vscode-dark,html[theme="dark"],[data-theme="dark"])'


def _variables(theme: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in theme.items())


def _underlined(selector: str, style: str) -> str:
    """Underline strong heat, the stronger the thicker, so that it shows without colour."""
    return "".join(
        f"{selector.format(LEVELS - _UNDERLINE + width - 1)}"
        f"{{padding-bottom:{_UNDERLINE - width}px;border-bottom:{width}px {style} var(--accent)}}"
        for width in range(1, _UNDERLINE + 1)
    )


# The dark palette applies to screens only: paper gets the light one.
_COLOURS = (
    ".dah{" + _variables(LIGHT) + "color-scheme:light dark}"
    "@media screen{@media (prefers-color-scheme:dark){.dah{" + _variables(DARK) + "}}"
    f"{_LIGHT_SWITCH} .dah{{{_variables(LIGHT)}color-scheme:light}}"
    f"{_DARK_SWITCH} .dah{{{_variables(DARK)}color-scheme:dark}}}}"
    "@media print{.dah{--page:#ffffff;color-scheme:light}}"
    + "".join(f".dah .k .a{n},.dah .dah-scale .k{n}{{background:var(--k{n})}}" for n in range(LEVELS))
    + "".join(f".dah .d .a{n}{{background:var(--d{n})}}" for n in range(2, LEVELS))
    + f".dah .dah-text *{{padding:2px 0 {_UNDERLINE}px}}"
    + _underlined(".dah .dah-text .k .a{0},.dah .dah-scale .k{0}", "solid")
    + _underlined(".dah .dah-text .d .a{0}", "dotted")
)

CSS = (
    _COLOURS
    + """
.dah,.dah *{box-sizing:border-box}
.dah{max-width:56rem;margin:0 auto;padding:1.5rem;background:var(--page);color:var(--text);
font:400 1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;text-align:start}
section.dah{margin:.5rem 0;border:1px solid var(--line);border-radius:.5rem}
.dah .dah-eyebrow{margin:0;color:var(--accent);font-size:.8125rem;font-weight:600;letter-spacing:.02em}
.dah .dah-query{margin:.125rem 0 1rem;font-size:1.5rem;font-weight:650;line-height:1.3;overflow-wrap:anywhere;
white-space:pre-wrap;color:inherit}
.dah .dah-facts{display:flex;flex-wrap:wrap;gap:.75rem 2.5rem;margin:0 0 1rem}
.dah .dah-facts div{min-width:0}
.dah .dah-facts dt,.dah .dah-facts dd{float:none;width:auto}
.dah .dah-facts dt{margin:0;padding:0;color:var(--muted);font-size:.8125rem;font-weight:400}
.dah .dah-facts dd{margin:0;padding:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.dah .dah-times span{display:inline-block;margin-inline-end:1rem}
.dah .dah-bar{display:flex;gap:2px;height:.5rem;margin:0 0 1rem;border-radius:1rem;overflow:hidden}
.dah .dah-bar i{flex:1 1 0;min-width:1px;background:var(--line)}
.dah .dah-bar b{display:block;height:100%;background:var(--accent)}
.dah .dah-tools{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;align-items:center;margin:0 0 1rem;padding:.5rem 0;
font-size:.875rem;background:var(--page)}
.dah .dah-tools fieldset{display:flex;flex-wrap:wrap;gap:.25rem;align-items:center;margin:0;padding:0;border:0;
min-width:0}
.dah .dah-tools legend{float:left;width:auto;margin:0 .5rem 0 0;padding:0;font-size:inherit;color:var(--muted)}
.dah .dah-tools label{display:inline-flex;gap:.5rem;align-items:center;min-height:2rem;margin:0;padding:.125rem .75rem;
border:1px solid var(--edge);border-radius:1rem;background:var(--card);color:var(--text);font-weight:400;cursor:pointer}
.dah .dah-tools label:has(:checked){border-color:var(--accent);box-shadow:inset 0 0 0 1px var(--accent)}
.dah .dah-tools label:has(:focus-visible){outline:2px solid var(--accent);outline-offset:2px}
.dah .dah-tools input{flex:none;width:1rem;height:1rem;margin:0;accent-color:var(--accent);cursor:pointer}
.dah .dah-keys{display:flex;flex-wrap:wrap;gap:.25rem 1.75rem;flex-basis:100%;color:var(--muted)}
.dah .dah-key{display:inline-flex;gap:.5rem;align-items:center}
.dah .dah-scale{display:inline-flex;border:1px solid var(--line);border-radius:.25rem;overflow:hidden}
.dah .dah-scale i{width:1.375rem;height:1rem}
.dah .dah-key mark{padding:0 .35em}
.dah .dah-note{margin:0 0 1rem;padding:.625rem .875rem;border-inline-start:3px solid var(--accent);
background:var(--card);border-radius:.25rem}
.dah .dah-card{margin:0 0 .75rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
@media screen{.dah-many .dah-card{content-visibility:auto;contain-intrinsic-size:auto 7rem}}
.dah summary{display:flex;flex-wrap:wrap;gap:0 1rem;align-items:baseline;padding:.625rem 1rem;cursor:pointer;
font-size:.875rem;color:var(--muted);list-style:none;font-variant-numeric:tabular-nums;scroll-margin-top:8rem}
.dah summary::-webkit-details-marker{display:none}
.dah summary::after{content:"";width:.4rem;height:.4rem;margin-inline-start:auto;align-self:center;
border:solid;border-width:0 1.5px 1.5px 0;transform:rotate(45deg)}
.dah [open]>summary::after{transform:rotate(-135deg)}
.dah [open]>summary{border-bottom:1px solid var(--line)}
.dah [open]>summary .dah-preview{display:none}
.dah .dah-preview{order:1;flex:0 0 100%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.dah .dah-name{margin:0;font-size:.9375rem;font-weight:650;line-height:inherit;color:var(--text)}
.dah .dah-title,.dah .dah-source{min-width:0;overflow-wrap:anywhere}
.dah .dah-title{color:var(--text)}
.dah .dah-answer{margin:0 0 1rem;padding:.625rem 1rem;background:var(--card);border:1px solid var(--line);
border-inline-start:3px solid var(--accent);border-radius:.25rem}
.dah .dah-answer p{margin:.25rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext}
.dah .dah-badge{padding:0 .5rem;border:1px solid var(--edge);border-radius:1rem;font-size:.8125rem}
.dah .dah-meter{display:inline-block;width:4rem;height:.5rem;margin-inline-start:.5rem;border-radius:1rem;
background:var(--line);overflow:hidden}
.dah .dah-meter b{display:block;height:100%;background:var(--accent)}
.dah .dah-text{padding:.875rem 1rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;
unicode-bidi:plaintext;color:var(--text)}
.dah .k{color:var(--text);background:var(--k0)}
.dah .d{color:var(--faded)}
.dah-whole .k{background:none}
.dah :focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:.25rem}
.dah .dah-tools input:focus-visible{outline:0}
.dah:has(.dah-only:checked) .d,.dah:has(.dah-only:checked) .dah-none{display:none}
.dah:has(.dah-only:checked) .d+.k::before{content:"\\22ef";padding:2px .4em 3px;
background:var(--card);color:var(--muted)}
.dah:has(.dah-heat:not(:checked)) .k{background:var(--k1)}
.dah:has(.dah-heat:not(:checked)) .dah-text span span,.dah:has(.dah-heat:not(:checked)) .dah-text mark span{
background:none;border:0}
.dah:has(.dah-heat:not(:checked)) .dah-scale-key{visibility:hidden}
@supports not selector(:has(a)){.dah .dah-tools fieldset{display:none}}
@media screen and (min-width:40rem) and (min-height:30rem){body.dah .dah-tools{position:sticky;top:0;z-index:1}}
@media (max-width:30rem){.dah{padding:1rem .75rem}.dah .dah-query{font-size:1.25rem}.dah .dah-facts{gap:.5rem 1.5rem}
.dah .dah-tools legend{float:none;width:100%}
.dah summary,.dah .dah-text{padding-inline:.75rem}}
@media (forced-colors:active){.dah .k,.dah .k *{forced-color-adjust:none;background:Mark;color:MarkText}}
@media print{.dah{max-width:none;padding:0;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.dah .dah-tools fieldset{display:none}.dah summary{break-after:avoid}.dah summary::after{display:none}
.dah .dah-text{orphans:3;widows:3}section.dah{border:0}}
"""
)
