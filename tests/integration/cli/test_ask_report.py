"""What the command line shows of compressed text, in colour and without."""

import io
from typing import Any

from rich.console import Console

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.cli.ask_report import show_kept
from draftapprox_integrations.cli.documents import Passage

MILL = "The old mill was built in 1821. Today it is a small museum. It closes in winter."
BRIDGE = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning."


def shown(result: Any, found: Any, **options: Any) -> Any:
    written = io.StringIO()
    show_kept(Console(file=written, width=200, **options), found, result)
    return written.getvalue()


def test_without_colours_nothing_dropped_looks_kept(embedded_model: LoadedModel) -> None:
    found = [Passage(MILL, "mill", "mill.txt"), Passage(BRIDGE, "bridge", "bridge.txt")]
    result = SpecPC("default").compress([MILL, BRIDGE], "In which year was the bridge opened?", max_tokens=12)
    plain = shown(result, found)
    assert "The bridge was opened in 1932. [... 56 characters dropped ...]" in plain
    assert "cyclists" not in plain
    colourful = shown(result, found, force_terminal=True, color_system="standard", no_color=False)
    assert "cyclists" in colourful
    assert "characters dropped" not in colourful
