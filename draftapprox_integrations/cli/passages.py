"""Commands that prepare drafts and passage stores: `draftapprox calibrate`, `ingest`, `store`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import DraftOption, load_compressor, notes, progress_bar, report_errors, screen

if TYPE_CHECKING:
    from ..specpc.store.passage_store import PassageStore

StoreArgument = Annotated[Path, typer.Argument(help="File of the passage store.")]

store_app = typer.Typer(no_args_is_help=True, help="Inspect or shrink a passage store.")


def calibrate(
    model: Annotated[str, typer.Option(help="Draft to calibrate: hub id, folder, .gguf file, or 'default'.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File for the heads.", show_default="the cache, where SpecPC finds them"),
    ] = None,
    tasks: Annotated[int, typer.Option(min=6, help="Number of questions to invent.")] = 60,
    heads: Annotated[int, typer.Option(min=1, help="Number of heads to choose.")] = 8,
    data: Annotated[
        Path | None,
        typer.Option(
            help='Questions with known evidence to fit weights to; JSON lines with "question", "passages", "evidence".',
            show_default="none",
        ),
    ] = None,
) -> None:
    """Find the attention heads of a draft that attend to evidence; takes some minutes on a CPU."""
    with report_errors():
        from ..specpc.calibration.calibrate import calibrate as calibrate_draft
        from ..specpc.calibration.fit import fit_to, read_questions
        from ..specpc.scoring.heads import check_output

        if out is not None:
            check_output(out)  # before minutes of work, not after
        questions = None if data is None else read_questions(data)
        draft = load_compressor(model).draft
        started = time.perf_counter()
        with notes.status("Scoring heads ...") as status:
            heads_found = calibrate_draft(
                draft,
                tasks=tasks,
                heads=heads,
                progress=lambda done, total: status.update(f"Scoring heads, question {done} of {total} ..."),
            )
        if questions is not None:
            with notes.status("Reading your questions ...") as status:
                heads_found = fit_to(
                    draft,
                    heads_found,
                    questions,
                    progress=lambda done, total: status.update(f"Reading question {done} of {total} ..."),
                )
        path = heads_found.save(out)
        screen.print(
            f"{draft.name}: heads {', '.join(f'{layer}.{head}' for layer, head in heads_found.heads)} (layer.head)"
        )
        screen.print(
            f"mean reciprocal rank of the evidence {heads_found.measured['mean_reciprocal_rank']:.3f}, "
            f"{heads_found.measured['held_back_mean_reciprocal_rank']:.3f} on questions held back; "
            f"{time.perf_counter() - started:.0f} s"
        )
        screen.print(f"Written to {path}")


def ingest(
    docs: Annotated[Path, typer.Argument(help="Folder (or file) to read: text, PDF, office files.")],
    store: Annotated[Path, typer.Option(help="File of the passage store; created if missing.")],
    draft: DraftOption = "default",
    max_mb: Annotated[int, typer.Option(min=1, help="Maximum size of the store in MiB.")] = 4096,
) -> None:
    """Run the draft over a folder's passages ahead of any question, so that `ask --store` need not."""
    with report_errors():
        from ..specpc.store.passage_store import PassageStore
        from .documents import read_folder

        passages = read_folder(docs)
        passage_store = PassageStore(store, max_bytes=max_mb << 20)
        compressor = load_compressor(draft, store=passage_store)
        started = time.perf_counter()
        with progress_bar("Reading") as progress:
            tokens = compressor.ingest([p.text for p in passages], [p.title for p in passages], progress=progress)
        seconds = time.perf_counter() - started
        stats = passage_store.stats()
        passage_store.close()
        # A text that stands in two files, with the same title, is one passage of the store.
        repeats = len(passages) - len({(p.title, p.text) for p in passages})
        repeated = f" ({repeats:,} of them repeat others and are stored once)" if repeats else ""
        noun = "passage" if len(passages) == 1 else "passages"
        screen.print(f"{len(passages):,} {noun}{repeated}, {tokens:,} tokens read in {seconds:.1f} s", soft_wrap=True)
        screen.print(f"{store}: {stats.passages:,} passages, {stats.bytes / 2**20:.1f} MiB", soft_wrap=True)
        if stats.dropped:
            notes.print(
                f"{stats.dropped:,} passages did not fit into {max_mb} MiB and will be read again: raise --max-mb"
            )


@store_app.command()
def stats(store: StoreArgument) -> None:
    """Show how many passages a store holds, and its size."""
    with report_errors():
        passage_store = _open(store)
        stats = passage_store.stats()
        screen.print(f"{stats.passages:,} passages, {stats.bytes / 2**20:.1f} MiB")
        passage_store.close()


@store_app.command()
def prune(
    store: StoreArgument,
    max_mb: Annotated[int, typer.Option(min=0, help="Size in MiB to shrink the store to.")],
) -> None:
    """Drop the least recently used passages of a store until it fits a size."""
    with report_errors():
        passage_store = _open(store)
        dropped = passage_store.prune(max_mb << 20)
        stats = passage_store.stats()
        screen.print(f"{dropped:,} passages dropped; {stats.passages:,} remain, {stats.bytes / 2**20:.1f} MiB")
        passage_store.close()


def _open(path: Path) -> PassageStore:
    from ..errors import InvalidInputError
    from ..specpc.store.passage_store import PassageStore

    if not path.is_file():
        raise InvalidInputError(f"there is no store {str(path)!r}; create one with draftapprox ingest")
    return PassageStore(path)
