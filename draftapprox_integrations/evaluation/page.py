"""Tables and plots of results: one Markdown page with a plot in a light and a dark version (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..errors import MissingDependencyError
from ..report.style import DARK, LIGHT
from .runs import Run

_THEMES = {"light": LIGHT, "dark": DARK}
# Okabe and Ito's colours, which colour-blind readers tell apart, and a marker each.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
_MARKERS = "osD^vP"


def score_rows(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A table of scores in percent: a row per task and one for the mean; a column per method and budget.

    Args:
        results: What `evaluate` returned. A task's score is the first of its metrics.

    Returns:
        The header, and the rows; "" where a method was not run on a task.
    """
    columns = [_scores(one) for one in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(_percent(column.get(name)) for column in columns)] for name in names]
    rows.append(["mean", *(_percent(mean(column.values()) if column else None) for column in columns)])
    return ["task", *(_label(one) for one in results)], rows


def write_page(results: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write results.md and its plot into a folder.

    Args:
        results: What `evaluate` returned.
        folder: Must exist.

    Returns:
        The page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    header, rows = score_rows(results)
    lines = ["# Results", "", *_table(header, rows), ""]
    for theme in _THEMES:
        _plot(results, folder / f"scores-{theme}.svg", theme)
    lines += [
        '<picture><source media="(prefers-color-scheme: dark)" srcset="scores-dark.svg">'
        '<img src="scores-light.svg" alt="Mean score over the budget, a line for each method"></picture>',
        "",
    ]
    usage = ["answers", "prompt_tokens", "kept_prompt_tokens", "kept_kv", "first_token_seconds"]
    cells = [[_label(one), *(_number(one["usage"].get(name)) for name in usage)] for one in results]
    lines += [*_table(["means of a run", *(name.replace("_", " ") for name in usage)], cells), ""]
    for text in dict.fromkeys(_machine(one) for one in results):
        lines.append(f"- {text}")
    page = folder / "results.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _plot(results: Sequence[Mapping[str, Any]], path: Path, theme: str) -> None:
    """Mean score over the budget; methods without a budget are horizontal lines."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('Plots need matplotlib: pip install "draftapprox-integrations[eval]"') from error
    colours = _THEMES[theme]
    figure = Figure(figsize=(7, 4.2), facecolor=colours["card"], layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor=colours["card"])
    points: dict[str, list[tuple[int | None, float]]] = {}
    for one in results:
        if scores := _scores(one):
            points.setdefault(one["run"]["method"], []).append((Run(**one["run"]).budget, 100 * mean(scores.values())))
    for index, (method, found) in enumerate(points.items()):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        line = sorted((budget, score) for budget, score in found if budget is not None)
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, label=method)
        for score in (score for budget, score in found if budget is None):
            axes.axhline(score, color=colour, linestyle="--", label=method)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlabel("tokens, or KV pairs per head, that are kept", color=colours["text"])
    axes.set_ylabel("mean score, %", color=colours["text"])
    axes.tick_params(which="both", colors=colours["text"])
    axes.grid(color=colours["line"])
    for spine in axes.spines.values():
        spine.set_color(colours["edge"])
    axes.legend(facecolor=colours["card"], edgecolor=colours["line"], labelcolor=colours["text"])
    figure.savefig(path, format="svg", metadata={"Date": None})


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The first metric of each task."""
    return {task: next(iter(metrics.values())) for task, metrics in result["scores"].items() if metrics}


def _label(result: Mapping[str, Any]) -> str:
    run = Run(**result["run"])
    return run.method if run.budget is None else f"{run.method} {run.budget}"


def _machine(result: Mapping[str, Any]) -> str:
    found, run = result["environment"], result["run"]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return (
        f"{found['gpu'] or found['processor']}, {found['cores']} cores; {versions}; commit {found['commit']}; "
        f"target {run['target']}, draft {run['draft']}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 and value != int(value) else f"{value:.0f}"
