"""Labels of passages on a narrow terminal."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.cli.ask_report import show_kept
from draftapprox_integrations.cli.documents import Passage
from draftapprox_integrations.cli.labels import labels

LONG = "Annual Report of the Harbour Authority of Skarvholm and the Outer Islands for the Year"


def passages(*named: Any) -> Any:
    return [Passage("text", title, file, number, of) for title, file, number, of in named]


def test_short_ones_are_whole() -> None:
    found = passages(("Three Storms", "storms.md", 1, 1), ("Mill", "old/mill.md", 2, 7))
    assert labels(found, 50) == ["Three Storms (storms.md)", "Mill 2/7 (old/mill.md)"]


@pytest.mark.parametrize(
    "named",
    [
        [(f"{LONG} 19{n}, by the harbour master and his two assistants", "reports.pdf", 1, 1) for n in range(30, 40)],
        [(f"{LONG} 1931, page {n}", "report.pdf", 1, 1) for n in range(1, 40)],
        [(LONG, "report.pdf", n, 40) for n in range(1, 41)],
        [(LONG, f"reports/of/the/authority/{n}/final/version/to/print/report.pdf", 1, 1) for n in range(12)],
        [(f"{LONG} {a} as seen by the people who worked there {b}", "r.md", 1, 1) for a in "xy" for b in "xy"],
        [("\u6e2f\u6e7e\u7ba1\u7406\u5c40" * 10 + str(n), "\u62a5\u544a.pdf", 1, 1) for n in range(5)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", [30, 52])
def test_long_ones_differ(named: Any, width: int) -> None:
    short = labels(passages(*named), width)
    assert len(set(short)) == len(named)
    assert all(cell_len(label) <= width for label in short)


@given(st.lists(st.tuples(st.text(), st.text(), st.just(1), st.integers(1, 2)), max_size=6), st.integers(10, 60))
def test_any_titles(named: Any, width: int) -> None:
    short = labels(passages(*named), width)
    assert all(cell_len(label) <= width for label in short)


def test_the_table_of_80_columns_tells_them_apart(embedded_model: LoadedModel) -> None:
    texts = [f"In 19{n} the harbour earned {n} thousand crowns. It rained." for n in range(30, 42)]
    found = [Passage(text, f"{LONG} 19{n + 30}", "harbour-authority-reports.pdf") for n, text in enumerate(texts)]
    result = SpecPC("default").compress(texts, "What did the harbour earn in 1934?", max_tokens=40)
    written = io.StringIO()
    show_kept(Console(file=written, width=80), found, result)
    rows = written.getvalue().splitlines()[1:13]
    assert all(f"19{n + 30}" in row for n, row in enumerate(rows))
    assert all(len(row.rstrip()) <= 80 for row in rows)
    panels = [line for line in written.getvalue().splitlines() if line.startswith("\u256d")]
    assert panels
    assert len({line.split(". ", 1)[1] for line in panels}) == len(panels)
