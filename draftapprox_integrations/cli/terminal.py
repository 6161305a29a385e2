"""What the commands of the command line share: where they write, common options, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import DraftApproxError

if TYPE_CHECKING:
    from ..specpc.compressor import SpecPC

screen = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

DraftOption = Annotated[str, typer.Option(help="Draft model: hub id, folder, .gguf file, or 'default'.")]


def load_engine(draft: str, *, store: Any = None, **settings: Any) -> SpecPC:
    """A `SpecPC` with these compression settings; loading prints nothing."""
    with notes.status("Loading models ..."):
        from transformers.utils import logging as transformers_logging

        from ..config import CompressionConfig
        from ..specpc.compressor import SpecPC

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        return SpecPC(draft, compression=CompressionConfig(**settings), store=store)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What goes wrong for a reason that a user can mend is one red line and exit code 1, not a traceback."""
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
