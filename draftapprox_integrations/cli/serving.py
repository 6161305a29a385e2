"""`draftapprox serve`: SpecPC behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MissingDependencyError
from .serving_routes import KEY_VARIABLE, Served, read_secret
from .terminal import DraftOption, load_compressor, report_errors, screen

TOKEN_VARIABLE = "DRAFTAPPROX_TOKEN"


def serve(
    draft: DraftOption = "default",
    model: Annotated[
        str | None,
        typer.Option(help="Target model that answers at /v1/chat/completions, by name.", show_default="none"),
    ] = None,
    kv: Annotated[int, typer.Option(min=0, help="KV pairs per layer and KV head that --model keeps; 0: all.")] = 1024,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a prompt that --model keeps (SpecPC).", show_default="all"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers that --model writes at a time.")] = 8,
    upstream: Annotated[
        str | None,
        typer.Option(
            help=f"API to pass requests on to, their context shortened; its key in {KEY_VARIABLE}.", show_default="none"
        ),
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of context of a request to --upstream.", show_default="1024")
    ] = None,
    trigger_tokens: Annotated[
        int, typer.Option(min=0, help="Context of at most so many tokens goes to --upstream unchanged.")
    ] = 2048,
    time_limit: Annotated[
        float, typer.Option(help="Seconds to shorten a request to --upstream; then it goes on unchanged.")
    ] = 10.0,
    unmarked: Annotated[
        bool,
        typer.Option("--unmarked", help="Also shorten long paragraphs without any mark.", show_default="off"),
    ] = False,
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
    """Serve compress and rerank over HTTP, with --model or --upstream also OpenAI's endpoints.

    Stops at SIGTERM or Ctrl-C, once running requests are finished.
    """
    with report_errors():
        _check_installed()
        from ..serving.app import create_app
        from ..serving.server import run
        from ..serving.settings import ServiceSettings

        served = Served(
            model=model,
            kv=kv,
            prompt_tokens=prompt_tokens,
            batch=batch,
            upstream=upstream,
            context_tokens=context_tokens,
            trigger_tokens=trigger_tokens,
            time_limit=time_limit,
            unmarked=unmarked,
        )
        settings = ServiceSettings(
            host=host,
            port=port,
            token=read_secret(token_file, TOKEN_VARIABLE),
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
        routers = served.routers(compressor, has_token=settings.token is not None)
        app = create_app(compressor, settings, routers=routers)
        name = compressor.draft.name if model is None else model
        finished = run(app, started=lambda url: screen.print(f"Serving {name} at {url}"))
        if not finished:  # a thread that still computes would hold the process
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'the service needs a few more packages: pip install "draftapprox-integrations[cli,serve]"'
        ) from error
