"""The notebooks run from top to bottom, and their results are right."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from draftapprox_integrations import LoadedModel
from tests.conftest import DEMO, ROOT

COOKBOOK = ROOT / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("*.ipynb"))
QUICK = {"06_bring_your_own_models"}  # run by every `make test`; the others by `make notebooks`
REWRITE = "COOKBOOK_REWRITE"  # set: right outputs replace those in the repository

# Run as a last cell in the notebook's own kernel.
FACTS = {
    "01_llamaindex_rag": """
        assert "21 August 1961" in str(response)
        assert sum(source.metadata["specpc"]["tokens_after"] for source in response.source_nodes) <= 100
        for source in response.source_nodes:
            pieces = [texts[source.node.ref_doc_id][start:end] for start, end in citations(source)]
            assert "\\n".join(pieces) == source.text
        assert cited == "school-annual-report.md"
        assert "opened on 21 August 1961." in " ".join(re.findall("<mark>(.*?)</mark>", highlighted(cited).data, re.S))
        assert result.tokens_after <= 120 < result.tokens_before
        assert again.draft_tokens < 100 < again.tokens_before
    """,
    "02_langchain_rag": """
        assert "1,300" in found["answer"]
        for document in found["context"]:
            text, begin = sources[document.metadata["title"]], document.metadata["start_index"]
            spans = document.metadata["specpc"]["kept"]
            assert "\\n".join(text[begin + a : begin + b] for a, b in spans) == document.page_content
        assert total.usage_metadata["input_token_details"]["kept_kv"] == 256 < total.usage_metadata["input_tokens"]
        assert "1961" in state["messages"][-1].text
        assert brought.text == search.func(type("Runtime", (), {"state": state}))
        assert shortener.load().count_tokens([sent.text])[0] <= 150
    """,
    "03_speckv": """
        assert answer.usage.kept_kv == 128 < answer.usage.prompt_tokens
        assert "Petra Vollan" in answer.text and "".join(pieces) == answer.text
        assert [row.usage.kept_kv for row in batch] == [128, 128]
        assert "80" in batch[0].text and "6,400" in batch[1].text
        assert "Haabet" in budgets["full cache"].text
        for name, written in budgets.items():
            if name != "full cache":
                assert written.usage.kept_kv == int(re.search("[0-9]+", name).group())
                assert bool(written.lookahead_ids) == name.startswith("SpecKV")
        full, ours = measured["full cache"], measured["SpecKV, 128 pairs"]
        assert [round(point["MiB"] / pair * 2**20) for point in full] == lengths
        assert {round(point["MiB"] / pair * 2**20) for point in ours} == {128}
        assert weight == 129 * pair  # and the last token of the prompt
        assert written.text.strip() and len(further) == 4
    """,
    "04_any_api": """
        assert "1961" in after.choices[0].message.content
        assert after.usage.prompt_tokens < before.usage.prompt_tokens / 3
        assert result.tokens_after <= result.tokens_before / 10
        assert rough.tokens_after <= 300 and rough.tokenizer == "rule_of_thumb"
        assert sum(len(rule_of_thumb_text) for rule_of_thumb_text in streamed) > 0 and len(streamed) > 3
    """,
    "05_see_what_the_draft_sees": """
        assert "2 February 1938" in candlemas.passages[2].text and "nine days" in power.passages[3].text
        assert all(survives(result, questions[question]) for question, result in asked.items())
        assert sorted(result.tokens_after for result in budgets.values()) == [r.tokens_after for r in budgets.values()]
        for result in [*asked.values(), *budgets.values(), *failing.values()]:
            assert result.tokens_after <= result.budget
        assert not survives(failing["20%"], evidence)
        layers, heads_per_layer = draft.model.config.num_hidden_layers, draft.model.config.num_attention_heads
        assert all(found.shape == (layers, heads_per_layer) for found, _ in maps.values())
        assert mean.max() > 5 * max(chance for _, chance in maps.values())
    """,
    "06_bring_your_own_models": """
        assert (target.vocab_size, draft.vocab_size) == (800, 400)
        assert answer.usage.kept_kv == 64 < answer.usage.prompt_tokens
        assert answer.lookahead_ids and result.tokens_after <= 100
        assert gguf.tokenizer is not None and gguf.vocab_size > 40_000
        assert first.load() is second.load() and handed.load() is kv
        assert not out.equal(plain) and out[:, : ids.shape[1]].equal(ids)
    """,
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# ipykernel prints this to stderr when its output thread is starved for ten seconds; no output is lost.
STARVED = "IOStream.flush timed out\n"


def code_cells(notebook: Any) -> Any:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, folder: Any) -> None:
    """Run the cells and record their outputs, even late ones.

    By default nbclient stops listening four seconds after a cell is done. Later output is lost, and the remaining
    listener takes messages, execution counts among them, from the cells that follow.
    """
    client = NotebookClient(
        notebook,
        timeout=600,
        iopub_timeout=600,
        raise_on_iopub_timeout=True,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    # The kernel is no part of the coverage: it would only run slower.
    client.execute(env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")})
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                output.text = output.text.replace(STARVED, "")
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr" or each.text]


def check_clean(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) > 3
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text  # a warning, a progress bar
        text = output.get("text", "") + "".join(map(str, (output.get("data") or {}).values()))
        assert "Traceback" not in text
        assert not re.search(r"(?<![\w.<])/(?:root|home|tmp|Users|work|opt|var|private)/", text), text[:300]
        assert "application/vnd.jupyter.widget-view+json" not in (output.get("data") or {})


@pytest.fixture(scope="module")
def font_cache() -> None:
    """Build Matplotlib's font list first: a notebook would print a warning if that takes five seconds."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, capture_output=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_imports_of_this_package_exists(path: Any) -> None:
    """Most notebooks run only on `make notebooks`; a name that has moved is seen here."""
    for cell in code_cells(read(path)):
        lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("!", "%"))]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("draftapprox_integrations"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow) for path in NOTEBOOKS],
)
def test_runs_and_computes_what_it_says(
    path: Any, tmp_path: Path, embedded_model: LoadedModel, font_cache: Any
) -> None:
    folder = tmp_path / "cookbook"
    folder.mkdir()
    shutil.copytree(DEMO, tmp_path / "demo")
    notebook = read(path)
    facts = "import re\n" + re.sub(r"(?m)^ {8}", "", FACTS[path.stem])
    notebook.cells.append(nbformat.v4.new_code_cell(facts))
    execute(notebook, folder)
    del notebook.cells[-1]
    check_clean(notebook)  # before it is written, so that unclean outputs never reach the repository
    if os.environ.get(REWRITE):
        notebook.metadata["language_info"] = {"name": "python"}  # without the version of Python
        nbformat.write(notebook, path)


def test_every_notebook_has_facts_to_check() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(FACTS)
    assert set(FACTS) > QUICK


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_clean_outputs(path: Any) -> None:
    assert path.stat().st_size < 1_000_000
    check_clean(read(path))


@pytest.mark.notebooks
@pytest.mark.slow
def test_a_kernel_that_gets_no_turn_loses_no_output(tmp_path: Path) -> None:
    """The output thread sleeps longer than ipykernel and, by default, nbclient wait for it."""
    stall = "import time\nget_ipython().kernel.iopub_thread.io_loop.add_callback(time.sleep, 16)"
    cells = [nbformat.v4.new_code_cell(source) for source in ("print(1)", stall, "print(3)", "print(4)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook, tmp_path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    texts = ["".join(output.text for output in cell.outputs) for cell in notebook.cells]
    assert texts == ["1\n", "", "3\n", "4\n"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_you_get_and_how_to_install(path: Any) -> None:
    title, install = read(path).cells[:2]
    assert title.source.startswith("# ")
    assert "At the end you" in title.source
    assert re.fullmatch(r"# !pip install .*", install.source)


@pytest.mark.parametrize("name", ["03_speckv", "05_see_what_the_draft_sees"])
def test_pictures_are_committed(name: str) -> None:
    data = [output.get("data", {}) for cell in code_cells(read(COOKBOOK / f"{name}.ipynb")) for output in cell.outputs]
    assert sum("image/png" in each for each in data) >= 2


def test_the_readme_lists_every_notebook_and_links_lead_somewhere() -> None:
    pages = {"README.md": (COOKBOOK / "README.md").read_text()}
    for path in NOTEBOOKS:
        assert f"({path.name})" in pages["README.md"]
        pages[path.name] = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for name, text in pages.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (COOKBOOK / target).exists(), f"{name}: {target}"
        for target in re.findall(r"`((?:benchmarks|demo)/[\w./-]+)`", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
