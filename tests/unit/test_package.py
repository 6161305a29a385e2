"""What importing costs, what the package promises to export, and how the floors are stacked."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import draftapprox_integrations

PACKAGE = Path(draftapprox_integrations.__file__).parent


def modules_after(code):
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_loads_neither_torch_nor_a_framework():
    loaded = modules_after("import draftapprox_integrations")
    assert not loaded & {"torch", "transformers", "langchain_core", "llama_index", "typer", "rich"}


def test_the_core_knows_no_framework():
    loaded = modules_after("from draftapprox_integrations import SpecPC, load_model")
    assert not loaded & {"langchain_core", "llama_index", "typer"}


def test_every_exported_name_exists():
    for name in draftapprox_integrations.__all__:
        assert getattr(draftapprox_integrations, name) is not None
    assert set(draftapprox_integrations.__all__) <= set(dir(draftapprox_integrations))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = draftapprox_integrations.nope
    assert version("draftapprox-integrations") == draftapprox_integrations.__version__


FLOORS = {
    "errors": 1, "config": 1, "results": 1, "heatmap": 1, "tokenization": 1, "embedded": 1, "models": 1, "attention": 1,
    "compatibility": 1,
    "heatmap_style": 1,
    "naming": 1, "guesses": 1, "specpc": 2, "speckv": 2, "chat": 2, "served": 2, "documents": 2, "answering": 2,
    "langchain": 3, "llama_index": 3,
    "report": 4, "terminal": 4, "cli": 4, "cli_passages": 4,
}  # fmt: skip


def imports_of(path):
    """Top-level parts of this package that a file imports, wherever in the file."""
    inside = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(inside[: len(inside) - node.level])
            target = base + (node.module.split(".") if node.module else [])
            yield from [target[0]] if target else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_floor_imports_only_floors_below(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in set(imports_of(path)) - {"__version__"}:
        assert FLOORS[name] < FLOORS[own] or name == own or FLOORS[name] == FLOORS[own] != 3
