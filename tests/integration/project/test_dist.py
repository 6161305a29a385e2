"""Wheel and sdist: they build offline, hold what they must, and work where this checkout is not."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import draftapprox_integrations
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = draftapprox_integrations.__version__
# What a checkout grows by being used, and no release needs.
GROWN = re.compile(r"(^|/)(__pycache__|\.[^/]+|site|dist)(/|$)|\.pyc$")


def run(*command: Any, cwd: Any = None, **environment: Any) -> Any:
    """Standard output of a command that must succeed, run without this process's Python settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE", "PIP_"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder with the sdist, and with the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def sdist(built: Any) -> Any:
    return built / f"draftapprox_integrations-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def wheel(built: Any) -> Any:
    return built / f"draftapprox_integrations-{VERSION}-py3-none-any.whl"


def files_under(folder: Any) -> Any:
    found = (str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {name for name in found if not GROWN.search(name)}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Any) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.startswith(f"draftapprox_integrations-{VERSION}.dist-info/")}
    assert names - info == files_under("draftapprox_integrations")
    assert "draftapprox_integrations/py.typed" in names
    assert f"draftapprox_integrations-{VERSION}.dist-info/licenses/LICENSE" in names
    text = zipfile.ZipFile(wheel).read(f"draftapprox_integrations-{VERSION}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["project"]["optional-dependencies"])
    assert "Draft-based Approximate Inference" in metadata.get_payload()


def test_the_sdist_can_build_test_and_document(sdist: Any) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    for folder in ("draftapprox_integrations", "tests", "docs", "cookbook", "demo", "benchmarks"):
        assert files_under(folder) <= names, folder
    single = {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml"}
    assert single | {"pyproject.toml", "constraints.txt"} <= names
    assert not [name for name in names if GROWN.search(name) and name != ".gitignore"]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_in_an_empty_environment(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "venv", tmp_path / "empty"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    # The dependencies, hatchling among them, are this environment's. A path in a .pth file is put on sys.path, but no
    # further .pth file there is read: an editable install of this checkout stays out of sight.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--no-compile", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, request.getfixturevalue(kind))

    where = "import draftapprox_integrations as d; print(d.__file__, d.__version__)"
    assert run(python, "-c", where, cwd=elsewhere).split() == [
        str(packages / "draftapprox_integrations" / "__init__.py"), VERSION
    ]  # fmt: skip
    assert (packages / "draftapprox_integrations" / "py.typed").exists()
    command = environment / "bin" / "draftapprox"
    assert run(command, "--version", cwd=elsewhere).strip() == f"draftapprox {VERSION}"
    assert "compress" in run(command, "--help", cwd=elsewhere)
    assert list(elsewhere.iterdir()) == []


def test_llamahub_lists_what_the_package_exports() -> None:
    hub = PROJECT["tool"]["llamahub"]
    module = import_module(hub["import_path"])
    classes = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
    assert set(hub["class_authors"]) == classes
    assert hub["contains_example"] == any("llamaindex" in path.name for path in (ROOT / "cookbook").glob("*.ipynb"))


def test_the_citation_file() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert (citation["version"], citation["license"]) == (VERSION, PROJECT["project"]["license"])
    paper = citation["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    bibtex = (ROOT / "README.md").read_text().split("```bibtex")[1]
    assert f"{{{authors}}}" in bibtex
    assert f"{{{paper['title']}}}" in bibtex
    assert f"{{{paper['year']}}}" in bibtex
    assert paper["url"] == PROJECT["project"]["urls"]["Paper"]
