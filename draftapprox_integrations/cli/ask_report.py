"""Output of `draftapprox ask`: retrieved passages, kept text, answers, and the seconds of each step."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..results import CompressedPassage, CompressionResult, Generation
from .documents import Passage

_CONTEXT = 60  # characters shown at each end of a dropped span


def show_retrieved(console: Console, question: str, corpus: int, found: int, seconds: float) -> None:
    """Print the question and how many of the corpus' passages were retrieved for it."""
    console.print()
    console.print(Panel(Text(question, style="bold"), title="question", title_align="left", border_style="cyan"))
    console.print(f"Retrieved {found} of {corpus} passages with BM25 in {seconds * 1000:.0f} ms.")


def show_kept(console: Console, retrieved: Sequence[Passage], result: CompressionResult) -> None:
    """Print a table of the passages, then the text of each passage with kept spans."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("passage", overflow="ellipsis", no_wrap=True, ratio=1)
    for heading in ("score", "tokens", "kept"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for number, (source, passage) in enumerate(zip(retrieved, result.passages, strict=True), 1):
        style = "" if passage.text else "dim"
        score = "" if passage.score != passage.score else f"{passage.score:.3f}"
        table.add_row(
            str(number),
            Text(f"{source.title} ({source.file})"),
            score,
            str(passage.tokens_before),
            str(passage.tokens_after or "-"),
            style=style,
        )
    console.print(table)
    in_colour = console.color_system is not None
    for number, (source, passage) in enumerate(zip(retrieved, result.passages, strict=True), 1):
        if passage.text:
            title = Text(f"{number}. {source.title}")
            console.print(Panel(marked(passage, in_colour), title=title, title_align="left", border_style="dim"))
    if result.draft_tokens:
        console.print(
            f"Kept [bold green]{result.tokens_after:,}[/] of {result.tokens_before:,} tokens "
            f"([bold green]{result.keep_ratio:.0%}[/]) with the draft {result.draft}."
        )
    else:
        console.print(f"All {result.tokens_before:,} tokens fit the budget; the draft did not run.")


def marked(passage: CompressedPassage, colour: bool) -> Text:
    """Return the original text: kept spans green, dropped spans dim, the middle of long dropped spans left out.

    Without colour (a file, a pipe) dropped text is left out, because it would look like kept text.
    """
    text, position = Text(), 0
    for start, end in [*passage.kept, (len(passage.original), len(passage.original))]:
        dropped = passage.original[position:start]
        if not colour and dropped.strip():
            dropped = f" [... {len(dropped.strip())} characters dropped ...] "
        elif len(dropped) > 2 * _CONTEXT + 20:
            head = dropped[:_CONTEXT] if position else ""
            tail = dropped[-_CONTEXT:] if end > start else ""
            dropped = f"{head} [... {len(dropped) - len(head) - len(tail)} characters dropped ...] {tail}"
        text.append(dropped, style="dim")
        text.append(passage.original[start:end], style="green")
        position = end
    return text


def show_answers(
    console: Console, result: CompressionResult, compressed: Generation, full: Generation | None, search_seconds: float
) -> None:
    """Print the answer and where the time went, next to the uncompressed run if there is one."""
    _show_answer(console, compressed, "answer", "green")
    if full is not None:
        _show_answer(console, full, "answer from the full context", "yellow")
    baseline = full or compressed
    compress_seconds = result.timings["total"]
    rows = [
        ("search", _seconds(search_seconds), _seconds(search_seconds)),
        ("score and select", _seconds(compress_seconds), ""),
        ("answer", _seconds(compressed.timings["total"]), _seconds(baseline.timings["total"])),
    ]
    if compressed.timings["prefill"]:
        steps = ("lookahead", "prefill", "decode")
        rows += [(f"  {step}", _seconds(compressed.timings[step]), "") for step in steps]
    total = search_seconds + compress_seconds + compressed.timings["total"]
    rows += [
        ("total", _seconds(total), _seconds(search_seconds + baseline.timings["total"])),
        ("prompt tokens", f"{compressed.usage.prompt_tokens:,}", f"{baseline.usage.prompt_tokens:,}"),
        ("KV pairs kept per head", f"{compressed.usage.kept_kv:,}", f"{baseline.usage.kept_kv:,}"),
        ("answer tokens", f"{compressed.usage.completion_tokens:,}", f"{baseline.usage.completion_tokens:,}"),
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("step")
    table.add_column("this run", justify="right")
    if full is not None:
        table.add_column("full context", justify="right")
    for row in rows:
        table.add_row(*(row if full is not None else row[:2]))
    console.print(table)


def _show_answer(console: Console, generation: Generation, title: str, colour: str) -> None:
    text = Text(generation.text.strip() or "(nothing)")
    console.print(Panel(text, title=title, title_align="left", border_style=colour))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
