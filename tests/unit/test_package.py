"""The cost of an import, the exported names, the floors of the house, and the size of its files."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import draftapprox_integrations

pytestmark = pytest.mark.thorough

PACKAGE = Path(draftapprox_integrations.__file__).parent
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
MOST_LINES = 350


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_loads_neither_torch_nor_a_framework() -> None:
    loaded = modules_after("import draftapprox_integrations")
    assert not loaded & {"torch", "transformers", "langchain_core", "llama_index", "typer", "rich"}


def test_the_core_knows_no_framework() -> None:
    loaded = modules_after("from draftapprox_integrations import SpecPC, load_model")
    assert not loaded & {"langchain_core", "llama_index", "typer"}


def test_every_exported_name_exists() -> None:
    for name in draftapprox_integrations.__all__:
        assert getattr(draftapprox_integrations, name) is not None
    assert set(draftapprox_integrations.__all__) <= set(dir(draftapprox_integrations))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = draftapprox_integrations.nope
    assert version("draftapprox-integrations") == draftapprox_integrations.__version__


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contract of the package that lies in `folder`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    command += ["--config", str(PYPROJECT), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_the_import_contract_is_kept() -> None:
    done = lint_imports(PACKAGE.parent)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("specpc/selection.py", "from ..speckv import scores", "specpc is not allowed to import"),  # upwards
        ("llama_index/rag.py", "from ..langchain import rag", "llama_index is not allowed to import"),  # sideways
        ("chat/tools.py", "from ..frameworks import llm", "chat is not allowed to import"),  # sideways
        ("models/loading.py", "if TYPE_CHECKING:\n    from ..engine import engine", "models is not allowed to import"),
        ("chat/tools.py", "from . import template", "No cycles are allowed in draftapprox_integrations.chat"),
        ("new_folder/__init__.py", "", "new_folder"),  # a folder must be given its floor
    ],
)
def test_the_import_contract_notices(file: str, line: str, broken: str, tmp_path: Path) -> None:
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / file
    changed.parent.mkdir(exist_ok=True)
    changed.write_text((changed.read_text() if changed.exists() else "") + f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert broken in " ".join(done.stdout.split())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
