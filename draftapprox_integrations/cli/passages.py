"""The command line's part about drafts and passages: calibrate a draft, read passages ahead of questions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import DraftOption, load_engine, notes, plain_errors, screen

if TYPE_CHECKING:
    from ..specpc.store.passage_store import PassageStore

StoreArgument = Annotated[Path, typer.Argument(help="The store's file.")]

store_app = typer.Typer(no_args_is_help=True, help="Look after the file that `ingest` fills.")


def calibrate(
    model: Annotated[str, typer.Option(help="Draft to calibrate: hub id, folder, .gguf file, or 'default'.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the heads; without, where every SpecPC finds them.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=6, help="Questions to make up.")] = 60,
    heads: Annotated[int, typer.Option(min=1, help="Heads to choose.")] = 8,
) -> None:
    """Find the attention heads of a draft that look at what answers a question; takes some minutes on a CPU."""
    with plain_errors():
        from ..specpc.calibration.calibrate import calibrate as find
        from ..specpc.scoring.heads import check_output

        if out is not None:
            check_output(out)  # before the work, not after it
        draft = load_engine(model).draft
        begun = time.perf_counter()
        with notes.status("Listening to the heads ...") as status:
            found = find(
                draft,
                tasks=tasks,
                heads=heads,
                progress=lambda done, total: status.update(f"Listening to the heads, question {done} of {total} ..."),
            )
        path = found.save(out)
        screen.print(f"{draft.name}: heads {', '.join(f'{layer}.{head}' for layer, head in found.heads)} (layer.head)")
        screen.print(
            f"mean reciprocal rank of the evidence {found.measured['mean_reciprocal_rank']:.3f}, "
            f"{found.measured['held_back_mean_reciprocal_rank']:.3f} on questions held back; "
            f"{time.perf_counter() - begun:.0f} s"
        )
        screen.print(f"Written to {path}")


def ingest(
    docs: Annotated[Path, typer.Argument(help="Folder (or file) to read: .md, .txt, .rst, .pdf.")],
    store: Annotated[Path, typer.Option(help="The store's file; made if it is missing.")],
    draft: DraftOption = "default",
    max_mb: Annotated[int, typer.Option(min=1, help="Most megabytes the store may take.")] = 4096,
) -> None:
    """Read a folder's passages ahead of any question, so that `ask --store` need not."""
    with plain_errors():
        from ..specpc.store.passage_store import PassageStore
        from .documents import read_folder

        passages = read_folder(docs)
        held = PassageStore(store, max_bytes=max_mb << 20)
        engine = load_engine(draft, store=held)
        begun, read, step = time.perf_counter(), 0, 16
        with notes.status("Reading ...") as status:
            for start in range(0, len(passages), step):
                some = passages[start : start + step]
                read += engine.ingest([p.text for p in some], [p.title for p in some])
                status.update(f"Read {min(start + step, len(passages))} of {len(passages)} passages ...")
        seconds = time.perf_counter() - begun
        stats = held.stats()
        held.close()
        screen.print(f"{len(passages)} passages, {read:,} tokens read in {seconds:.1f} s")
        screen.print(f"{store}: {stats.passages:,} passages, {stats.bytes / 2**20:.1f} MiB")
        if stats.dropped:
            notes.print(
                f"{stats.dropped:,} passages found no room in {max_mb} MiB and will be read again: raise --max-mb"
            )


@store_app.command()
def stats(store: StoreArgument) -> None:
    """How much a store holds."""
    with plain_errors():
        held = _open(store)
        found = held.stats()
        screen.print(f"{found.passages:,} passages, {found.bytes / 2**20:.1f} MiB")
        held.close()


@store_app.command()
def prune(
    store: StoreArgument,
    max_mb: Annotated[int, typer.Option(min=0, help="Drop the longest unused passages until this many MiB remain.")],
) -> None:
    """Make a store smaller."""
    with plain_errors():
        held = _open(store)
        dropped = held.prune(max_mb << 20)
        found = held.stats()
        screen.print(f"{dropped:,} passages dropped; {found.passages:,} remain, {found.bytes / 2**20:.1f} MiB")
        held.close()


def _open(path: Path) -> PassageStore:
    from ..errors import InvalidInputError
    from ..specpc.store.passage_store import PassageStore

    if not path.is_file():
        raise InvalidInputError(f"there is no store {str(path)!r}; make one with draftapprox ingest")
    return PassageStore(path)
