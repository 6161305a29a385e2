"""Output of `draftapprox ask`, for people or as JSON: passages, kept text, answers, and the seconds of each step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..results import CompressedPassage, CompressionResult, Generation
from .documents import Passage
from .labels import labels

_NUMBERS = 28  # columns that the numbers of the table take, with the space around them
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
    names = labels(retrieved, max(console.width - _NUMBERS, 10))
    for number, (name, passage) in enumerate(zip(names, result.passages, strict=True), 1):
        style = "" if passage.text else "dim"
        score = "" if passage.score != passage.score else f"{passage.score:.3f}"
        table.add_row(
            str(number),
            Text(name),
            score,
            str(passage.tokens_before),
            str(passage.tokens_after or "-"),
            style=style,
        )
    console.print(table)
    in_colour = console.color_system is not None
    names = labels(retrieved, max(console.width - 10, 10))
    for number, (name, passage) in enumerate(zip(names, result.passages, strict=True), 1):
        if passage.text:
            title = Text(f"{number}. {name}")
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


@dataclass(frozen=True)
class Asked:
    """One question, answered.

    Attributes:
        retrieved: The passages that were found, best first.
        result: What the draft kept of them.
        compressed: The answer from what was kept.
        full: The answer from all of it, with `--compare`.
        search_seconds: Seconds of the search.
    """

    retrieved: Sequence[Passage]
    result: CompressionResult
    compressed: Generation
    full: Generation | None
    search_seconds: float

    def answers(self) -> dict[str, str]:
        """Return the answers by their headings."""
        found = {"Answer": _text_of(self.compressed)}
        return found if self.full is None else found | {"Answer from the full context": _text_of(self.full)}


def as_line(asked: Asked, model: str, method: str) -> str:
    """Return a question and its answer as one line of JSON; docs/guides/command_line.md names its keys.

    Args:
        asked: The question.
        model: Name of the target.
        method: Value of `--method`.
    """
    result = asked.result.to_dict()
    kept = [
        {"file": source.file, "number": source.number, **entry, "original": source.text}
        for source, entry in zip(asked.retrieved, result.pop("passages"), strict=True)
        if entry["text"]
    ]
    steps = result.pop("timings")
    line = {
        "question": result.pop("query"),
        "answer": asked.compressed.text.strip(),
        "passages": kept,
        "retrieved": len(asked.retrieved),
        **result,
        "model": model,
        "method": method,
        **_counts(asked.compressed),
        "timings": {"search": asked.search_seconds, "compress": steps, "answer": asked.compressed.timings},
    }
    if asked.full is not None:
        timings = {"timings": asked.full.timings}
        line["full"] = {"answer": asked.full.text.strip(), **_counts(asked.full), **timings}
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def _counts(generation: Generation) -> dict[str, object]:
    usage = generation.usage
    return {
        "finish_reason": generation.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "kept_kv": usage.kept_kv,
    }


def show_answers(console: Console, asked: Asked) -> None:
    """Print the answer and where the time went, next to the uncompressed run if there is one."""
    result, compressed, full, search_seconds = asked.result, asked.compressed, asked.full, asked.search_seconds
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
    text = Text(_text_of(generation))
    console.print(Panel(text, title=title, title_align="left", border_style=colour))


def _text_of(generation: Generation) -> str:
    return generation.text.strip() or "(nothing)"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
