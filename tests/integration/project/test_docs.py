"""The documentation builds without a warning, shows every public name, and quotes only messages that exist."""

import ast
import html
import inspect
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import draftapprox_integrations
from draftapprox_integrations import (
    CompressionConfig,
    SpecKVConfig,
    SpecPC,
    SpecPCConfig,
    langchain,
    llama_index,
    load_model,
)
from draftapprox_integrations.cli.app import app
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PACKAGE = ROOT / "draftapprox_integrations"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The site, built strictly where neither torch nor a framework can be imported."""
    folder = tmp_path_factory.mktemp("site")
    build = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'langchain_core', 'llama_index'): sys.modules[name] = None\n"
        "from mkdocs.__main__ import cli\n"
        "cli()"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Any) -> None:
    inventory = (site / "objects.inv").read_bytes()
    listed = zlib.decompress(inventory.split(b"zlib.\n", 1)[1]).decode()
    documented = {line.split(" ", 1)[0] for line in listed.splitlines()}
    for module in (draftapprox_integrations, langchain, llama_index):
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in documented


def test_the_reference_knows_the_fields_of_the_classes(site: Any) -> None:
    for page, field, kind, default in [
        ("langchain", "on_empty", "OnEmpty", "&#39;drop&#39;"),
        ("langchain", "top_k", "int | None", "None"),
        ("llama_index", "context_window", "int | None", "None"),
        ("langchain", "generate_kwargs", "dict[str, Any] | None", "None"),
    ]:
        text = (site / "api" / page / "index.html").read_text()
        rows = re.findall(r'<tr class="doc-section-item">(.*?)</tr>', text, re.DOTALL)
        cells = [[re.sub("<[^>]+>", "", cell).strip() for cell in row.split("<td>")[1:]] for row in rows]
        (found,) = [cell for cell in cells if cell[0] == field]
        assert [found[1], found[-1]] == [kind, default]


def test_nothing_is_fetched_by_a_readers_browser(site: Any) -> None:
    tags = r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?https?:|<link[^>]*\shref=[\"']?https?:"
    loading = re.compile(tags + r"|@import|url\(https?:")
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 20
    for page in pages:
        assert not loading.search(page.read_text()), page
    for image in DOCS.glob("images/*.svg"):
        root = ElementTree.parse(image).getroot()
        assert root.find("{*}title") is not None
        links = [value for one in root.iter() for key, value in one.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") for link in links), image  # to a part of itself


def test_the_status_tables_are_shown(site: Any) -> None:
    first_cells = re.findall(r"^\| (?!Part)(.+?) \|", (DOCS / "status.md").read_text(), re.MULTILINE)
    assert len(first_cells) > 10
    shown = re.sub("<[^>]+>", "", (site / "status" / "index.html").read_text())
    for cell in first_cells:
        assert html.escape(cell.replace("`", ""), quote=False) in shown.replace("&quot;", '"').replace("&#39;", "'")


def test_the_notebooks_are_listed_and_carried(site: Any) -> None:
    page = re.sub("<[^>]+>", "", (site / "cookbook" / "index.html").read_text())
    notebooks = sorted((ROOT / "cookbook").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        title = json.loads(notebook.read_text())["cells"][0]["source"][0].lstrip("# ").strip()
        assert title in html.unescape(page)
        assert (site / "cookbook" / notebook.name).read_bytes() == notebook.read_bytes()


def message_of(node: Any) -> Any:
    """The text of a string expression, with … in place of filled-in values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub("%[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message_of(part) for part in node.values)
    return "…"


def strings_of_the_package() -> Iterator[Any]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):  # an error is made, a warning logged: docstrings do not count
                yield from map(message_of, node.args)
            elif isinstance(node, ast.Return) and node.value is not None:
                yield message_of(node.value)


def test_troubleshooting_quotes_messages_that_are_raised() -> None:
    raised = set(strings_of_the_package())
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 40
    assert not [heading for heading in quoted if not any(heading in message for message in raised)]


def test_the_command_lines_options_are_all_described() -> None:
    page = (DOCS / "guides" / "command_line.md").read_text()
    group: Any = typer.main.get_command(app)
    commands = group.commands
    known = {option for command in commands.values() for p in command.params for option in p.opts if option[0] == "-"}
    described = {
        option for row in re.findall(r"^\| (`-.+?) \|", page, re.MULTILINE) for option in re.findall("`(.+?)`", row)
    }
    assert described == known - {"--help"}


def test_migration_names_arguments_that_exist() -> None:
    page = (DOCS / "migration.md").read_text()
    cells = re.findall(r"^\|.*\| (.+) \|$", page, re.MULTILINE)
    ours = {name for cell in cells for code in re.findall("`(.+?)`", cell) for name in re.findall(r"([a-z_]+)=", code)}
    known = {"formatted"}  # of LlamaIndex's `complete`
    for function in (SpecPC, SpecPC.compress, SpecPCConfig, CompressionConfig, SpecKVConfig, load_model):
        known |= set(inspect.signature(function).parameters)
    for part in (langchain.SpecPCCompressor, langchain.ChatSpecKV, langchain.SpecKVLLM, llama_index.SpecKVLLM):
        known |= set(part.model_fields)
    assert {"max_tokens", "loading", "max_batch_size"} <= known
    assert len(ours) > 8
    assert ours <= known
