"""Line plots as SVG files, each in a light and a dark version (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError
from ..report.style import DARK, LIGHT

_THEMES = {"light": LIGHT, "dark": DARK}
# Okabe and Ito's colours, which colour-blind readers tell apart, and a marker each.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
_MARKERS = "osD^vP"


def write_plot(
    lines: Mapping[str, Sequence[tuple[float | None, float]]], path: Path, *, title: str, x: str, y: str
) -> None:
    """Write name-light.svg and name-dark.svg, with x on a logarithmic axis.

    Args:
        lines: By label the points of a line; where x is None, a horizontal line at y.
        path: Folder and name of the files, without the ending.
        title: What a reader who cannot see the plot is told.
        x, y: Labels of the axes.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    for theme, colours in _THEMES.items():
        figure = _draw(lines, colours, x, y)
        metadata = {"Date": None, "Title": title}
        figure.savefig(path.with_name(f"{path.name}-{theme}.svg"), format="svg", metadata=metadata)


def _draw(lines: Mapping[str, Sequence[tuple[float | None, float]]], colours: Mapping[str, str], x: str, y: str) -> Any:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('Plots need matplotlib: pip install "draftapprox-integrations[eval]"') from error
    figure = Figure(figsize=(7, 4.2), facecolor=colours["card"], layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor=colours["card"])
    for index, (label, points) in enumerate(lines.items()):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        style = "-" if index < len(_COLOURS) else ":"
        line = sorted((at, value) for at, value in points if at is not None)
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, linestyle=style, label=label)
        for level in (value for at, value in points if at is None):
            axes.axhline(level, color=colour, linestyle="--", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(x, color=colours["text"])
    axes.set_ylabel(y, color=colours["text"])
    axes.tick_params(which="both", colors=colours["text"])
    axes.grid(color=colours["line"])
    for spine in axes.spines.values():
        spine.set_color(colours["edge"])
    axes.legend(facecolor=colours["card"], edgecolor=colours["line"], labelcolor=colours["text"])
    return figure
