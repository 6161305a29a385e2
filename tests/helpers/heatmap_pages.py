"""Helpers of the heat map's browser tests: a browser, a server that records requests, pages, and their contrast."""

from __future__ import annotations

import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from draftapprox_integrations.report.heatmap import render_fragment
from draftapprox_integrations.report.style import LEVELS
from draftapprox_integrations.results import CompressedPassage, CompressionResult
from tests.unit.report.test_heatmap import passage, result

# Playwright adds the rest: headless, a fresh user folder, no background traffic.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
NO_BROWSER = "no browser: install Chromium (`apt install chromium`), or set CHROMIUM to the path of one"


def find_chromium() -> str | None:
    """$CHROMIUM, or what is on the PATH."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, map(shutil.which, filter(None, names))), None)


class Site(ThreadingHTTPServer):
    """Serve one page at every address and record the requested paths."""

    def __init__(self, html: str) -> None:
        self.page = html.encode()
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/heat.html"

    def __enter__(self) -> Site:
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, *_: object) -> None:
        pass


TEXTS = [
    "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning.",
    "The old mill was built in 1821. Today it is a small museum.",
    "Cats sleep most of the day.",
]


def storm(query: str = "When was the bridge opened?") -> CompressionResult:
    """Every level of heat, in kept and in dropped text; of the last passage nothing is kept."""

    def words(text: str, kept: list[tuple[int, int]], score: float) -> CompressedPassage:
        found = list(re.finditer(r"\s*\S+", text))
        # The square root of the heat makes the level: this is every level in turn.
        heat = [(m.start(), m.end(), ((n % LEVELS + 0.5) / LEVELS) ** 2) for n, m in enumerate(found)]
        return passage(text, kept, [*heat, (0, 0, 1.0)], score)

    return result(
        words(TEXTS[0], [(0, 30), (50, 87)], 0.43),
        words(TEXTS[1], [(0, 31)], 0.21),
        words(TEXTS[2], [], 0.05),
        query=query,
    )


KEPT = [TEXTS[0][:30] + TEXTS[0][50:], TEXTS[1][:31]]


def in_notebook(*found: CompressionResult, theme: str) -> str:
    outputs = "".join(f'<div class="output"><pre>Out:</pre>{render_fragment(one)}</div>' for one in found)
    return (
        f'<!DOCTYPE html><html lang="en"><body data-jp-theme-light="{str(theme == "light").lower()}">{outputs}</body>'
    )


# Every visible piece of text with the colours it is really drawn in: (ratio, ink, ground, class, text).
CONTRASTS = """() => {
  const numbers = (colour) => {
    const parts = colour.match(/^rgba?\\((.*)\\)$/)[1].split(',').map(Number);
    return [parts.slice(0, 3), parts.length > 3 ? parts[3] : 1];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const measure = (element, style, text) => {
    const [ink, opaque] = numbers(style.color);
    if (opaque !== 1) throw Error('see-through text: ' + text);
    let ground = null;
    for (let e = element, s = style; e; e = e.parentElement, s = e && getComputedStyle(e)) {
      if (s.opacity !== '1' || s.filter !== 'none' || s.backgroundImage !== 'none') throw Error('not plain: ' + text);
      const [colour, alpha] = numbers(s.backgroundColor);
      if (alpha !== 0 && alpha !== 1) throw Error('half a background: ' + text);
      if (alpha === 1 && !ground) ground = colour;
    }
    ground ??= [255, 255, 255];
    const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), ink.join(), ground.join(), element.className, text.trim().slice(0, 40)];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
    found.push(measure(element, getComputedStyle(element), node.data));
  }
  for (const element of document.querySelectorAll('.dah *')) {
    const style = getComputedStyle(element, '::before');
    if (element.checkVisibility() && !['none', 'normal', '""'].includes(style.content))
      found.push(measure(element, style, style.content));
  }
  return found;
}"""
