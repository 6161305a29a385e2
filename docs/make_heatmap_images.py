"""Make the pictures of docs/images: the heat map of a question about demo/docs, and all text beside the kept text.

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
from draftapprox_integrations.report.heatmap import render_fragment

ROOT = Path(__file__).parent.parent
QUESTION = "Who founded the museum in 1952?"
NAMES = filter(None, [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"])


BEFORE_AFTER = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 24px; background: {paper}; font: 600 17px system-ui, sans-serif; color: {ink}; }}
main {{ display: grid; grid-template-columns: 1fr 1fr; gap: 28px; height: 590px; overflow: hidden; }}
main > div {{ overflow: hidden; }}
p {{ margin: 0 0 18px; font-size: 20px; }}
</style><p>{query}</p><main><div>Before: {before} tokens{left}</div><div>After: {after} tokens{right}</div></main>"""
COLOURS = {"light": ("#ffffff", "#1c1c1c"), "dark": ("#0d1117", "#e6edf3")}


def main() -> None:
    """Compress, then take screenshots of the page, and of all text beside the kept text, in both themes."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit("There is no Chromium: install it, or set CHROMIUM to its path.")
    found = search(read_folder(ROOT / "demo" / "docs"), QUESTION, 4)
    result = SpecPC("default").compress(
        [passage.text for passage in found], QUESTION, max_tokens=150, titles=[passage.title for passage in found]
    )
    images = ROOT / "docs" / "images"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 860, "height": 760}, color_scheme=theme)
            page.set_content(result.to_html())
            page.screenshot(path=images / f"heatmap-{theme}.png")
            page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme=theme)
            paper, ink = COLOURS[theme]
            view = render_fragment(result)
            page.set_content(
                BEFORE_AFTER.format(
                    paper=paper,
                    ink=ink,
                    query=QUESTION,
                    before=result.tokens_before,
                    after=result.tokens_after,
                    left=view,
                    right=view,
                )
            )
            page.locator("main > div").nth(1).get_by_label("kept only").check()
            page.add_style_tag(content="header, .dah-tools, .dah-legend { display: none !important }")
            page.screenshot(path=images / f"before-after-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
