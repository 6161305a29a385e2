"""Makes docs/images/heatmap-light.png and heatmap-dark.png: what the embedded model keeps of demo/docs.

Run it as `python docs/make_heatmap_images.py`. Needs Chromium on the PATH, or its path in CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from draftapprox_integrations import SpecPC
from draftapprox_integrations.cli.documents import read_folder, search

ROOT = Path(__file__).parent.parent
QUESTION = "Who founded the museum in 1952?"
NAMES = filter(None, [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"])


def main() -> None:
    """Retrieves, compresses, and photographs the page in both themes."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit("There is no Chromium: install it, or set CHROMIUM to its path.")
    found = search(read_folder(ROOT / "demo" / "docs"), QUESTION, 4)
    result = SpecPC("default").compress(
        [passage.text for passage in found], QUESTION, max_tokens=150, titles=[passage.title for passage in found]
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 860, "height": 760}, color_scheme=theme)
            page.set_content(result.to_html())
            page.screenshot(path=ROOT / "docs" / "images" / f"heatmap-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
