"""What `draftapprox ask` prints: what was retrieved, what was kept of it, the answer, the time of each step."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..results import CompressedPassage, CompressionResult, Generation
from .documents import Passage

_DROPPED_SHOWN = 60  # characters of a dropped stretch shown at each of its ends


def show_retrieved(console: Console, question: str, corpus: int, found: int, seconds: float) -> None:
    """The question, and how many passages search brought."""
    console.print()
    console.print(Panel(Text(question, style="bold"), title="question", title_align="left", border_style="cyan"))
    console.print(f"Retrieved {found} of {corpus} passages with BM25 in {seconds * 1000:.0f} ms.")


def show_kept(console: Console, found: Sequence[Passage], result: CompressionResult) -> None:
    """A table of the passages, then the text of those of which something was kept."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("passage", overflow="ellipsis", no_wrap=True, ratio=1)
    for heading in ("attention", "tokens", "kept"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for number, (source, passage) in enumerate(zip(found, result.passages, strict=True), 1):
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
    for number, (source, passage) in enumerate(zip(found, result.passages, strict=True), 1):
        if passage.text:
            title = Text(f"{number}. {source.title}")
            console.print(
                Panel(
                    marked(passage, in_colour),
                    title=title,
                    title_align="left",
                    border_style="dim",
                )
            )
    if result.draft_tokens:
        console.print(
            f"Kept [bold green]{result.tokens_after:,}[/] of {result.tokens_before:,} tokens "
            f"([bold green]{result.keep_ratio:.0%}[/]) after one look by {result.draft}."
        )
    else:
        console.print(f"All {result.tokens_before:,} tokens fit the budget; the draft did not run.")


def marked(passage: CompressedPassage, colour: bool) -> Text:
    """The original with kept text in green and dropped text dim; long dropped stretches are cut short.

    Without colours (a file, a pipe) no dropped text is shown: it would look like kept text.
    """
    text, position = Text(), 0
    for start, end in [*passage.kept, (len(passage.original), len(passage.original))]:
        dropped = passage.original[position:start]
        if not colour and dropped.strip():
            dropped = f" [... {len(dropped.strip())} characters dropped ...] "
        elif len(dropped) > 2 * _DROPPED_SHOWN + 20:
            head = dropped[:_DROPPED_SHOWN] if position else ""
            tail = dropped[-_DROPPED_SHOWN:] if end > start else ""
            dropped = f"{head} [... {len(dropped) - len(head) - len(tail)} characters dropped ...] {tail}"
        text.append(dropped, style="dim")
        text.append(passage.original[start:end], style="green")
        position = end
    return text


def show_answers(
    console: Console, result: CompressionResult, short: Generation, full: Generation | None, search_seconds: float
) -> None:
    """The answer, and where the time went; beside the uncompressed run if there is one."""
    console.print(
        Panel(Text(short.text.strip() or "(nothing)"), title="answer", title_align="left", border_style="green")
    )
    if full is not None:
        title = "answer from the full context"
        console.print(
            Panel(Text(full.text.strip() or "(nothing)"), title=title, title_align="left", border_style="yellow")
        )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("step")
    table.add_column("this run", justify="right")
    if full is not None:
        table.add_column("full context", justify="right")
    rows: list[tuple[str, str, str]] = [
        ("search", _seconds(search_seconds), _seconds(search_seconds)),
        ("draft reads and chooses", _seconds(result.timings["total"]), ""),
    ]
    longer = full or short
    took, whole = short.timings["total"], longer.timings["total"]
    rows.append(("answer", _seconds(took), _seconds(whole)))
    if short.timings["prefill"]:
        steps = {"guess": "lookahead", "prefill": "prefill", "decode": "decode"}
        rows += [(f"  {name}", _seconds(short.timings[step]), "") for name, step in steps.items()]
    rows += [
        ("total", _seconds(search_seconds + result.timings["total"] + took), _seconds(search_seconds + whole)),
        ("prompt tokens", f"{short.usage.prompt_tokens:,}", f"{longer.usage.prompt_tokens:,}"),
        ("KV pairs kept per head", f"{short.usage.kept_kv:,}", f"{longer.usage.kept_kv:,}"),
        ("answer tokens", f"{short.usage.completion_tokens:,}", f"{longer.usage.completion_tokens:,}"),
    ]
    for row in rows:
        table.add_row(*(row if full is not None else row[:2]))
    console.print(table)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
