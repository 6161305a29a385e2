"""Entry point of the command line, with `draftapprox ask` (answer from documents) and `compress` (for pipes)."""

from __future__ import annotations

import sys

try:
    import typer

    from .terminal import DraftOption, load_compressor, notes, report_errors, screen, show_warnings
except ImportError as error:
    if (error.name or "").startswith("draftapprox_integrations"):
        raise
    sys.exit('The command line needs a few more packages: pip install "draftapprox-integrations[cli]"')

import json
import time
import warnings
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import InvalidInputError
from . import evaluation as evaluation_commands
from . import passages as passage_commands
from . import serving as serving_commands

if TYPE_CHECKING:
    from ..engine.engine import SpecKV
    from ..models.loading import LoadedModel

DEFAULT_BUDGET = 512  # tokens of context that `ask` keeps

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(passage_commands.calibrate)
app.command()(passage_commands.ingest)
app.add_typer(passage_commands.store_app, name="store")
app.command()(serving_commands.serve)
app.command("eval")(evaluation_commands.evaluate)
app.command("eval-rag")(evaluation_commands.evaluate_rag)
app.command()(evaluation_commands.advise)
app.command(
    "lm-eval",
    add_help_option=False,  # the harness has its own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(evaluation_commands.lm_eval)


class Unit(StrEnum):
    """Values of `--granularity`."""

    token = "token"
    word = "word"
    sentence = "sentence"


class Method(StrEnum):
    """Values of `--method`."""

    specpc = "specpc"
    speckv = "speckv"
    speckvpc = "speckvpc"
    full = "full"


# Typer shows no default where it is None, so these say what happens then.
RatioOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the context's tokens to keep, in (0, 1]; instead of --max-tokens.", show_default="--max-tokens"
    ),
]
RecallOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the evidence to keep, in (0, 1], in as few sentences as that takes.", show_default="none"
    ),
]
RelevanceOption = Annotated[
    float | None,
    typer.Option(help="Lowest probability, in [0, 1], of a kept sentence to be evidence.", show_default="none"),
]
UnitOption = Annotated[Unit, typer.Option(help="Unit of text that is kept or dropped.")]
StoreOption = Annotated[
    Path | None,
    typer.Option(help="Passage store to read and fill; see ingest.", show_default="memory, until the command ends"),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(help="Also write a heat map of the kept text to this HTML file.", show_default="none"),
]


def _show_version(requested: bool) -> None:
    if requested:
        from .. import __version__

        screen.print(f"draftapprox {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Draft-based Approximate Inference for RAG: keep the context that a small draft model attends to."""
    show_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning)


@app.command()
def ask(
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", show_default=False)],
    docs: Annotated[Path, typer.Option(help="Folder (or file) to answer from: text, PDF, office files.")],
    model: Annotated[
        str, typer.Option(help="Target model that answers: hub id, folder, .gguf file, or 'default'.")
    ] = "default",
    draft: DraftOption = "default",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of context tokens to keep.",
            show_default=f"{DEFAULT_BUDGET}; all with --method speckv and full",
        ),
    ] = None,
    keep_ratio: RatioOption = None,
    recall: RecallOption = None,
    min_relevance: RelevanceOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of passages to retrieve.")] = 12,
    granularity: UnitOption = Unit.sentence,
    method: Annotated[
        Method,
        typer.Option(help="specpc: shorten the context; speckv: evict KV pairs; speckvpc: both; full: neither."),
    ] = Method.specpc,
    kv: Annotated[
        int, typer.Option(min=32, help="KV pairs kept per layer and KV head, with speckv and speckvpc.")
    ] = 256,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer from the uncompressed context too.", show_default="off")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 48,
    store: StoreOption = None,
    html: HtmlOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Write JSON to stdout instead: one object per question, each on a line of its own.",
            show_default="off",
        ),
    ] = False,
) -> None:
    """Answer questions from a folder of documents: retrieve (BM25), compress, answer."""
    with report_errors():
        from ..chat.answering import answer
        from ..specpc.budget import Budget
        from ..specpc.validation import check_query
        from .ask_report import Asked, as_line, show_answers, show_kept, show_retrieved
        from .documents import Search, read_folder

        limits = Budget(max_tokens=max_tokens, keep_ratio=keep_ratio, recall=recall, min_relevance=min_relevance)
        _check_writable(html)
        for question in questions:
            check_query(question)
        shortens = method in (Method.specpc, Method.speckvpc)
        if not shortens and limits != Budget():
            raise InvalidInputError(
                "--max-tokens, --keep-ratio, --recall and --min-relevance shorten the context; --method "
                f"{method.value} does not"
            )
        if limits == Budget():
            limits = Budget(max_tokens=DEFAULT_BUDGET) if shortens else Budget(keep_ratio=1.0)

        passages = read_folder(docs)
        compressor = load_compressor(draft, store=store, granularity=granularity.value)
        target = _load_target(model, draft, compressor.draft)
        engine, full_engine = _engines(target, compressor.draft, method, kv)
        search = Search(passages)
        for number, question in enumerate(questions, 1):
            started = time.perf_counter()
            retrieved = search.find(question, top_k)
            search_seconds = time.perf_counter() - started
            if not as_json:
                show_retrieved(screen, question, len(passages), len(retrieved), search_seconds)
            texts, titles = [p.text for p in retrieved], [p.title for p in retrieved]
            with notes.status("The draft scores the passages ..."):
                result = compressor.compress(texts, question, **asdict(limits), titles=titles)
            if not as_json:
                show_kept(screen, retrieved, result)
            with notes.status("Answering ..."):
                compressed = answer(engine, [p.text for p in result.passages if p.text], question, max_new_tokens)
                full = answer(full_engine, texts, question, max_new_tokens) if compare else None
            asked = Asked(retrieved, result, compressed, full, search_seconds)
            if as_json:
                sys.stdout.write(as_line(asked, target.name, method.value) + "\n")
                sys.stdout.flush()
            else:
                show_answers(screen, asked)
            if html is not None:
                page = html if number == 1 else html.with_stem(f"{html.stem}-{number}")
                page.write_text(result.to_html(answers=asked.answers(), sources=[p.file for p in retrieved]), "utf-8")
                (notes if as_json else screen).print(f"Heat map: {page}")


@app.command()
def compress(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text, PDF or office files; stdin if none is given.")
    ] = None,
    *,
    query: Annotated[str, typer.Option("--query", "-q", help="Question that decides which text matters.")],
    draft: DraftOption = "default",
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of context tokens to keep.", show_default="1024")
    ] = None,
    keep_ratio: RatioOption = None,
    recall: RecallOption = None,
    min_relevance: RelevanceOption = None,
    granularity: UnitOption = Unit.sentence,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Write the whole result as JSON: texts, spans, scores, counts, timings.", show_default="off"
        ),
    ] = False,
    store: StoreOption = None,
    html: HtmlOption = None,
) -> None:
    """Compress files or stdin with SpecPC and write the kept text, or JSON, to stdout; token counts go to stderr."""
    with report_errors():
        from ..specpc.budget import Budget
        from ..specpc.validation import check_query
        from .reading import read_file

        limits = Budget(max_tokens=max_tokens, keep_ratio=keep_ratio, recall=recall, min_relevance=min_relevance)
        check_query(query)
        _check_writable(html)
        documents: list[tuple[str | None, str | None, str]] = [(None, None, _read_stdin())] if not files else []
        for file in files or ():
            documents += [(file.name, title, text) for title, text in read_file(file)]
        titles, texts = [title for _, title, _ in documents], [text for _, _, text in documents]
        compressor = load_compressor(draft, store=store, granularity=granularity.value)
        result = compressor.compress(texts, query, **asdict(limits), titles=titles)
        if as_json:
            sys.stdout.write(json.dumps(result.to_dict() | {"titles": titles}, ensure_ascii=False, indent=2) + "\n")
        else:
            sys.stdout.write("\n\n".join(passage.text for passage in result.passages if passage.text) + "\n")
        if html is not None:
            html.write_text(result.to_html(sources=[name for name, _, _ in documents]), encoding="utf-8")
        notes.print(
            f"{result.tokens_before:,} -> {result.tokens_after:,} tokens ({result.keep_ratio:.0%}) "
            f"in {result.timings['total']:.2f} s, counted by {result.tokenizer}",
            style="dim",
        )


def _load_target(name: str, draft_name: str, draft: LoadedModel) -> LoadedModel:
    from ..models.loading import load_model

    return draft if name == draft_name else load_model(name)


def _engines(target: LoadedModel, draft: LoadedModel, method: Method, kv: int) -> tuple[SpecKV, SpecKV]:
    """Return the engine of the method, and the engine that keeps the full KV cache."""
    from ..config import SpecKVConfig
    from ..engine.registry import FULL, shared_engine

    full = shared_engine(target, None, FULL)
    if method in (Method.specpc, Method.full):
        return full, full
    return shared_engine(target, draft, SpecKVConfig(max_capacity_prompt=kv)), full


def _check_writable(html: Path | None) -> None:
    if html is not None and (html.is_dir() or not html.resolve().parent.is_dir()):
        raise InvalidInputError(f"cannot write {html}: give the name of a file in a folder that exists")


def _read_stdin() -> str:
    if sys.stdin.isatty():
        notes.print("Reading from the terminal; end with Ctrl-D.", style="dim")
    from .reading import UnreadableFileError, decode

    try:
        return decode(sys.stdin.buffer.read(), "standard input")
    except UnreadableFileError as error:
        raise InvalidInputError(f"cannot read standard input: {error}") from error
