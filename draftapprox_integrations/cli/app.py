"""The command line: `draftapprox ask` answers from a folder of documents, `draftapprox compress` is for pipes."""

from __future__ import annotations

import sys

try:
    import typer

    from .terminal import DraftOption, load_engine, notes, plain_errors, screen
except ImportError as error:
    if (error.name or "").startswith("draftapprox_integrations"):
        raise
    sys.exit('The command line needs a few more packages: pip install "draftapprox-integrations[cli]"')

import json
import logging
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import InvalidInputError
from . import passages as passage_commands

if TYPE_CHECKING:
    from ..config import Granularity
    from ..engine.engine import SpecKV
    from ..models.loading import LoadedModel
    from ..specpc.compressor import SpecPC
    from .documents import Passage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Draft-based Approximate Inference for RAG: keep what a small draft model looks at.",
)
app.command()(passage_commands.calibrate)
app.command()(passage_commands.ingest)
app.add_typer(passage_commands.store_app, name="store")


class Unit(StrEnum):
    """What is kept or dropped as a whole."""

    token = "token"
    word = "word"
    sentence = "sentence"


class Method(StrEnum):
    """What is dropped on the way to the answer."""

    specpc = "specpc"
    speckv = "speckv"
    speckvpc = "speckvpc"
    full = "full"


TokensOption = Annotated[int | None, typer.Option(help="Most tokens of context to keep.")]
RatioOption = Annotated[float | None, typer.Option(help="Share of the context to keep, instead of --max-tokens.")]
UnitOption = Annotated[Unit, typer.Option(help="What is kept or dropped as a whole.")]
StoreOption = Annotated[Path | None, typer.Option(help="File that remembers passages; see ingest.")]
HtmlOption = Annotated[Path | None, typer.Option(help="Also write a heat map of what was kept to this file.")]


def _show_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        screen.print(f"draftapprox {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Draft-based Approximate Inference for RAG: keep what a small draft model looks at."""
    logging.getLogger("draftapprox_integrations").addHandler(logging.StreamHandler())
    warnings.filterwarnings("ignore", category=FutureWarning)


@app.command()
def ask(
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", show_default=False)],
    docs: Annotated[Path, typer.Option(help="Folder (or file) to answer from: .md, .txt, .rst, .pdf.")],
    model: Annotated[
        str, typer.Option(help="Model that answers: hub id, folder, .gguf file, or 'default'.")
    ] = "default",
    draft: DraftOption = "default",
    max_tokens: TokensOption = None,
    ratio: RatioOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Passages to retrieve.")] = 12,
    granularity: UnitOption = Unit.sentence,
    method: Annotated[
        Method, typer.Option(help="specpc: shorten the context; speckv: drop KV pairs; speckvpc: both; full: neither.")
    ] = Method.specpc,
    kv: Annotated[int, typer.Option(min=32, help="KV pairs kept per layer and head, with speckv and speckvpc.")] = 256,
    compare: Annotated[bool, typer.Option("--compare", help="Answer from the uncompressed context too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 48,
    store: StoreOption = None,
    html: HtmlOption = None,
) -> None:
    """Answer questions from a folder of documents: retrieve (BM25), compress, answer."""
    with plain_errors():
        from ..specpc.validation import check_budget, check_query
        from .documents import read_folder

        check_budget(max_tokens, ratio)
        _check_page(html)
        for question in questions:
            check_query(question)
        shortens = method in (Method.specpc, Method.speckvpc)
        if not shortens and (max_tokens is not None or ratio is not None):
            raise InvalidInputError(f"--max-tokens and --ratio shorten the context; --method {method.value} does not")
        if max_tokens is None and ratio is None:
            max_tokens, ratio = (512, None) if shortens else (None, 1.0)
        passages = read_folder(docs)
        engine, target = _load(draft, model, granularity.value, store)
        answers, whole = _engines(target, engine.draft, method, kv)
        for number, question in enumerate(questions):
            page = html if number == 0 or html is None else html.with_stem(f"{html.stem}-{number + 1}")
            _ask_one(
                engine, answers, whole, passages, question, (max_tokens, ratio), top_k, compare, max_new_tokens, page
            )


@app.command()
def compress(
    files: Annotated[list[Path] | None, typer.Argument(help="Text, Markdown or PDF files; without, stdin.")] = None,
    *,
    query: Annotated[str, typer.Option("--query", "-q", help="The question that tells what matters.")],
    draft: DraftOption = "default",
    max_tokens: TokensOption = None,
    ratio: RatioOption = None,
    granularity: UnitOption = Unit.sentence,
    as_json: Annotated[bool, typer.Option("--json", help="Write everything that is known, as JSON.")] = False,
    store: StoreOption = None,
    html: HtmlOption = None,
) -> None:
    """Write what SpecPC keeps of files or of stdin, as text or JSON; counts go to stderr."""
    with plain_errors():
        from ..specpc.validation import check_budget, check_query
        from .documents import read_file

        check_budget(max_tokens, ratio)
        check_query(query)
        _check_page(html)
        parts = [part for file in files for part in read_file(file)] if files else [(None, _read_stdin())]
        engine, _ = _load(draft, None, granularity.value, store)
        titles, texts = [title for title, _ in parts], [text for _, text in parts]
        result = engine.compress(texts, query, max_tokens=max_tokens, keep_ratio=ratio, titles=titles)
        if as_json:
            sys.stdout.write(json.dumps(result.to_dict() | {"titles": titles}, ensure_ascii=False, indent=2) + "\n")
        else:
            sys.stdout.write("\n\n".join(passage.text for passage in result.passages if passage.text) + "\n")
        if html is not None:
            html.write_text(result.to_html(), encoding="utf-8")
        notes.print(
            f"{result.tokens_before:,} -> {result.tokens_after:,} tokens ({result.keep_ratio:.0%}) "
            f"in {result.timings['total']:.2f} s, counted by {result.tokenizer}",
            style="dim",
        )


def _ask_one(
    engine: SpecPC,
    answers: SpecKV,
    whole: SpecKV,
    passages: list[Passage],
    question: str,
    budget: tuple[int | None, float | None],
    top_k: int,
    compare: bool,
    max_new_tokens: int,
    html: Path | None,
) -> None:
    import time

    from ..chat.answering import answer
    from .ask_report import show_answers, show_kept, show_retrieved
    from .documents import search

    begun = time.perf_counter()
    found = search(passages, question, top_k)
    searching = time.perf_counter() - begun
    show_retrieved(screen, question, len(passages), len(found), searching)
    with notes.status("The draft reads the passages ..."):
        result = engine.compress(
            [p.text for p in found],
            question,
            max_tokens=budget[0],
            keep_ratio=budget[1],
            titles=[p.title for p in found],
        )
    show_kept(screen, found, result)
    with notes.status("Answering ..."):
        short = answer(answers, [p.text for p in result.passages if p.text], question, max_new_tokens)
        full = answer(whole, [p.text for p in found], question, max_new_tokens) if compare else None
    show_answers(screen, result, short, full, searching)
    if html is not None:
        html.write_text(result.to_html(), encoding="utf-8")
        screen.print(f"Heat map: {html}")


def _load(draft: str, model: str | None, granularity: Granularity, store: Path | None) -> tuple[SpecPC, LoadedModel]:
    from ..models.loading import load_model

    engine = load_engine(draft, store=store, granularity=granularity)
    return engine, engine.draft if model in (None, draft) else load_model(model or draft)


def _engines(target: LoadedModel, draft: LoadedModel, method: Method, kv: int) -> tuple[SpecKV, SpecKV]:
    """What answers, and what answers with the whole cache."""
    from ..config import SpecKVConfig
    from ..engine.registry import FULL, shared_engine

    whole = shared_engine(target, None, FULL)
    if method in (Method.specpc, Method.full):
        return whole, whole
    return shared_engine(target, draft, SpecKVConfig(max_capacity_prompt=kv)), whole


def _check_page(html: Path | None) -> None:
    if html is not None and (html.is_dir() or not html.resolve().parent.is_dir()):
        raise InvalidInputError(f"cannot write {html}: give the name of a file in a folder that exists")


def _read_stdin() -> str:
    if sys.stdin.isatty():
        notes.print("Reading from the keyboard; end with Ctrl-D.", style="dim")
    data = sys.stdin.buffer.read()
    if b"\0" in data[:4096]:
        raise InvalidInputError("standard input is not text")
    return data.decode("utf-8", errors="replace").removeprefix("\ufeff")
