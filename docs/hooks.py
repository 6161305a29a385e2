"""MkDocs hooks: add the cookbook's notebooks to the site as files, and list them on the cookbook page."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOKS = "<!-- notebooks -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks, which lie outside the documentation's folder."""
    for path in _notebooks(config):
        files.append(File.generated(config, f"cookbook/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """List the notebooks with the title and the first paragraph of their first cell."""
    if NOTEBOOKS not in markdown:
        return markdown
    entries = []
    for path in _notebooks(config):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, _, rest = first.partition("\n")
        paragraph = " ".join(rest.strip().split("\n\n")[0].splitlines())
        entries.append(f"## {title.lstrip('# ')}\n\n{paragraph}\n\n[`{path.name}`](cookbook/{path.name})\n")
    return markdown.replace(NOTEBOOKS, "\n".join(entries))


def _notebooks(config: Any) -> list[Path]:
    return sorted((Path(config.config_file_path).parent / "cookbook").glob("*.ipynb"))
