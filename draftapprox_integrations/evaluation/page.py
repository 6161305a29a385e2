"""Tables and plots of results: one Markdown page with a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .plots import write_plot
from .runs import Run

BUDGET_AXIS = "tokens, or KV pairs per head, that are kept"


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
    lines = ["# Results", "", *table_lines(header, rows), ""]
    title = "Mean score over the budget, a line for each method"
    write_plot(score_lines(results), folder / "scores", title=title, x=BUDGET_AXIS, y="mean score, %")
    lines += [
        '<picture><source media="(prefers-color-scheme: dark)" srcset="scores-dark.svg">'
        f'<img src="scores-light.svg" alt="{title}"></picture>',
        "",
    ]
    lines += [*table_lines(*usage_rows(results)), ""]
    for text in dict.fromkeys(_machine(one) for one in results):
        lines.append(f"- {text}")
    page = folder / "results.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def usage_rows(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A table of what the runs read, kept and took; the header, and a row per run."""
    usage = ["answers", "prompt_tokens", "kept_prompt_tokens", "kept_kv", "first_token_seconds"]
    rows = [[_label(one), *(_number(one["usage"].get(name)) for name in usage)] for one in results]
    return ["means of a run", *(name.replace("_", " ") for name in usage)], rows


def score_lines(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float | None, float]]]:
    """By method the budget and the mean score in percent of each run, for `write_plot`."""
    points: dict[str, list[tuple[float | None, float]]] = {}
    for one in results:
        if scores := _scores(one):
            points.setdefault(one["run"]["method"], []).append((Run(**one["run"]).budget, 100 * mean(scores.values())))
    return points


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


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(row)} |" for row in lines]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 and value != int(value) else f"{value:.0f}"
