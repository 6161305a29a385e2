"""Helpers that all commands share: consoles, the `--draft` option, loading, one-line errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import DraftApproxError

if TYPE_CHECKING:
    from ..specpc.compressor import SpecPC
    from ..specpc.store.passage_store import PassageStore

screen = Console(highlight=False)  # results, on stdout
notes = Console(stderr=True, highlight=False)  # progress, counts and errors, on stderr

DraftOption = Annotated[str, typer.Option(help="Draft model: hub id, folder, .gguf file, or 'default'.")]


def load_compressor(
    draft: str, *, store: PassageStore | Path | None = None, tokenizer: str | None = None, **settings: Any
) -> SpecPC:
    """Load a `SpecPC` with these compression settings; only a status line on stderr shows that it loads."""
    with notes.status("Loading models ..."):
        from transformers.utils import logging as transformers_logging

        from ..config import CompressionConfig
        from ..specpc.compressor import SpecPC

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        return SpecPC(draft, compression=CompressionConfig(**settings), tokenizer=tokenizer, store=store)


class _Notes(logging.Handler):
    """Shows the package's warnings through `notes`, so that they do not tear a status line."""

    def emit(self, record: logging.LogRecord) -> None:
        notes.print(escape(record.getMessage()), soft_wrap=True)


def show_warnings() -> None:
    """Let the package's log records appear on stderr, each once."""
    log = logging.getLogger("draftapprox_integrations")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, if that is a terminal; yields a function that takes what is done, and all."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def report_errors() -> Iterator[None]:
    """Print an error that a user can fix as one red line on stderr and exit with code 1, without a traceback."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        notes.print("Interrupted.")
        raise typer.Exit(130) from None
    except (DraftApproxError, ValueError, OSError) as error:
        notes.print(f"[bold red]Error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
