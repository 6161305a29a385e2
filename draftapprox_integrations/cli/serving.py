"""`draftapprox serve`: SpecPC behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError, MissingDependencyError
from .terminal import DraftOption, load_compressor, report_errors, screen

if TYPE_CHECKING:
    from fastapi import APIRouter

    from ..serving.settings import ServiceSettings
    from ..specpc.compressor import SpecPC

TOKEN_VARIABLE = "DRAFTAPPROX_TOKEN"


def serve(
    draft: DraftOption = "default",
    store: Annotated[
        Path | None, typer.Option(help="Passage store to read and fill; see ingest.", show_default="memory")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the tokenizer that counts budgets.", show_default="the draft's"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must bring.", show_default=f"variable {TOKEN_VARIABLE}"),
    ] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Longest body of a request, in MiB.")] = 4.0,
    max_passages: Annotated[int, typer.Option(min=1, help="Most passages of a request.")] = 1000,
    max_input_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a request's texts.")] = 1 << 18,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests served at a time, waiting ones too.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Compressions that run at a time.")] = 2,
    queue: Annotated[int, typer.Option(min=0, help="Most compressions that wait; further ones get 429.")] = 64,
    body_seconds: Annotated[float, typer.Option(help="Seconds in which a request's body must arrive.")] = 10.0,
    header_seconds: Annotated[float, typer.Option(help="Seconds in which a request's headers must arrive.")] = 10.0,
    keep_alive_seconds: Annotated[float, typer.Option(help="Seconds until an idle connection is closed.")] = 30.0,
    graceful_seconds: Annotated[float, typer.Option(help="Seconds for running requests to finish at the end.")] = 30.0,
    log_text: Annotated[
        bool, typer.Option("--log-text", help="Also log queries and passages.", show_default="off")
    ] = False,
) -> None:
    """Serve compress and rerank over HTTP; stops at SIGTERM or Ctrl-C once running requests are finished."""
    with report_errors():
        _check_installed()
        from ..serving.app import create_app
        from ..serving.server import run
        from ..serving.settings import ServiceSettings

        settings = ServiceSettings(
            host=host,
            port=port,
            token=_read_token(token_file),
            max_body_bytes=int(max_body_mb * 2**20),
            max_passages=max_passages,
            max_input_tokens=max_input_tokens,
            max_requests=max_requests,
            workers=workers,
            queue=queue,
            body_seconds=body_seconds,
            header_seconds=header_seconds,
            keep_alive_seconds=keep_alive_seconds,
            graceful_seconds=graceful_seconds,
            log_text=log_text,
        )
        compressor = load_compressor(draft, store=store, tokenizer=tokenizer)
        app = create_app(compressor, settings, routers=extra_routers(compressor, settings))
        finished = run(app, started=lambda url: screen.print(f"Serving {compressor.draft.name} at {url}"))
        if not finished:  # a thread that still computes would hold the process
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def extra_routers(compressor: SpecPC, settings: ServiceSettings) -> list[APIRouter]:
    """Routers beside those of `create_app`."""
    return []


def _read_token(file: Path | None) -> str | None:
    """The token of a file, or of the environment; None where neither is given.

    Raises:
        InvalidInputError: the file or the variable is empty: a service that should have a token must not start open.
    """
    if file is None:
        given = os.environ.get(TOKEN_VARIABLE)
        source = f"the variable {TOKEN_VARIABLE}"
    else:
        given = file.read_text(encoding="utf-8")
        source = str(file)
    if given is not None and not given.strip():
        raise InvalidInputError(f"{source} holds no token; put one there, or leave it out")
    return None if given is None else given.strip()


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'the service needs a few more packages: pip install "draftapprox-integrations[cli,serve]"'
        ) from error
