"""Runs: a method with its settings on tasks, read from YAML, resumed after a kill, written as one JSON file each."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from .environment import environment
from .methods import method_config

if TYPE_CHECKING:
    from .harness import DraftApproxLM

_BUDGET = {"speckvpc": "speckv_max_capacity_prompt"}  # the setting that `budgets` varies, else max_capacity_prompt
_LOCAL = ("longbench_", "longbench2_")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method on some tasks.

    Attributes:
        target, draft: What `load_model` takes, by name.
        method, settings: As for `evaluation.methods.method_config`.
        tasks: RULER's names ("ruler" for all), and any of lm-evaluation-harness ("longbench_trec").
        lengths: Tokens of RULER's prompts.
        samples: Samples of each task; None: all that the task has, 500 of RULER's.
        seed: Seed of RULER's samples.
        chat_template: Whether prompts are put into the target's chat template.
        batch_size: Most rows of the engine's running batch.
        model: Further arguments of `DraftApproxLM`, such as dtype.
    """

    target: str = "default"
    draft: str | None = "default"
    method: str = "full"
    settings: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ("ruler",)
    lengths: Sequence[int] = (4096,)
    samples: int | None = None
    seed: int = 0
    chat_template: bool = True
    batch_size: int = 8
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        method_config(self.method, self.settings, 1 << 20)  # a wrong setting is known before any model is loaded
        if not self.tasks:
            raise InvalidInputError("give at least one task")
        if self.samples is not None and self.samples < 1:
            raise InvalidInputError(f"samples must be >= 1; got {self.samples}")

    @property
    def budget(self) -> int | None:
        """Tokens or KV pairs that the method keeps; None for "full"."""
        found = self.settings.get(_BUDGET.get(self.method, "max_capacity_prompt"))
        return None if found is None else int(found)

    @property
    def name(self) -> str:
        """A file name: method, budget and a digest of all settings."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
        return "-".join([self.method, *([] if self.budget is None else [str(self.budget)]), digest])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"tasks": list(self.tasks), "lengths": list(self.lengths)}

    def with_budget(self, budget: int) -> Run:
        """The same run at another budget."""
        name = _BUDGET.get(self.method, "max_capacity_prompt")
        return self if self.method == "full" else replace(self, settings={**self.settings, name: budget})


def read_runs(pattern: str, **changes: Any) -> list[Run]:
    """Runs of all YAML files that match a pattern; "budgets" in a file makes one run of each.

    Args:
        pattern: A path, or a glob such as "configs/paper/speckv/**/*.yaml".
        **changes: Fields of `Run` that replace those of the files; None changes nothing.

    Raises:
        InvalidInputError: no file matches, or one holds what `Run` does not take.
    """
    import yaml

    # A user's pattern may be absolute, which `Path.glob` refuses.
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not paths:
        raise InvalidInputError(f"no file matches {pattern}")
    made: list[Run] = []
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise InvalidInputError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(content, dict):
            raise InvalidInputError(f"{path} must hold fields such as target, method and tasks")
        budgets = content.pop("budgets", None)
        unknown = sorted(content.keys() - {field.name for field in fields(Run)})
        if unknown:
            raise InvalidInputError(
                f"{path} has unknown fields {', '.join(map(str, unknown))}; known are budgets, "
                f"{', '.join(field.name for field in fields(Run))}"
            )
        run = Run(**(content | {name: value for name, value in changes.items() if value is not None}))
        made += [run.with_budget(int(budget)) for budget in budgets] if budgets else [run]
    return made


def evaluate(
    run: Run,
    out: Path,
    *,
    ruler_data: Path | None = None,
    longbench_data: Path | None = None,
) -> dict[str, Any]:
    """Run it, unless its result is there; a run that was killed goes on from the answers it had.

    Args:
        run: What to run.
        out: Folder of the results: `run.name`.json, and answers so far.
        ruler_data, longbench_data: Folders with data, see `ruler_tasks` and `local_longbench`.

    Returns:
        What was written: "run", "scores" by task (all metrics of the harness), "usage", "environment", "seconds".

    Raises:
        InvalidInputError: a task or its data is missing.
        MissingDependencyError: the harness is not installed.
    """
    path = out / f"{run.name}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    from .harness import DraftApproxLM, simple_evaluate

    answers = out / "answers" / run.name
    answers.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        others = _other_tasks(run, longbench_data, Path(folder))
        model = DraftApproxLM(run.target, run.draft, run.method, run.batch_size, **run.model, **run.settings)
        started = time.perf_counter()
        try:
            tasks = [*_ruler(run, model, ruler_data), *others]
            named = any(not name.endswith(".yaml") for name in others)
            found = _guarded(
                lambda: simple_evaluate(
                    model,
                    tasks=tasks,
                    task_manager=_task_manager(named),
                    limit=run.samples,
                    use_cache=str(answers),
                    apply_chat_template=run.chat_template,
                    bootstrap_iters=0,
                    log_samples=False,
                )
            )
            result = {
                "run": run.to_dict(),
                "scores": {task: _metrics(row) for task, row in found["results"].items()},
                "usage": _usage(model),
                "environment": environment(),
                "seconds": time.perf_counter() - started,
            }
        finally:
            model.engine.close()
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    for file in answers.parent.glob(f"{run.name}*"):
        file.unlink()
    return result


def read_results(out: Path) -> Iterator[dict[str, Any]]:
    """The results in a folder, those of the same method by budget."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    yield from sorted(found, key=lambda one: (one["run"]["method"], Run(**one["run"]).budget or 0))


def _ruler(run: Run, model: DraftApproxLM, data: Path | None) -> list[Any]:
    from .ruler import RULER, ruler_tasks

    names = [name for task in run.tasks for name in (RULER if task == "ruler" else [task]) if name in RULER]
    if not names:
        return []
    return ruler_tasks(
        list(dict.fromkeys(names)), run.lengths, model.tokenizer, samples=run.samples or 500, seed=run.seed, data=data
    )


def _other_tasks(run: Run, data: Path | None, folder: Path) -> list[str]:
    from .longbench import PAPER_TASKS, local_longbench
    from .ruler import RULER

    names = [
        name
        for task in run.tasks
        if task not in (*RULER, "ruler")
        for name in (PAPER_TASKS if task == "longbench-paper" else [task])
    ]
    local = [name for name in names if data is not None and name.startswith(_LOCAL)]
    named = [name for name in names if name not in local]
    unknown = [name for name in named if not _task_manager(True).match_tasks([name])]
    if unknown:
        raise InvalidInputError(f"neither RULER nor lm-evaluation-harness has a task {', '.join(unknown)}")
    return [
        *named,
        *(local_longbench(local, data, folder) if data is not None else []),
    ]


@cache
def _task_manager(named: bool) -> Any:
    """The harness' index of tasks; its own are thousands of files, which are read only where one is named."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=named)


def _guarded(call: Any) -> Any:
    """Say what to do where a task's data cannot be loaded from a hub; quiet about what is meant for its authors."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from requests.exceptions import ConnectionError as NoConnection

    logger = logging.getLogger("lm_eval.api.task")  # two lines for each of RULER's tasks, on arguments of its loader
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return call()
    except (
        DatasetsError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, NoConnection, ConnectionError,
    ) as error:  # fmt: skip
        raise InvalidInputError(
            f"the data of a task cannot be loaded from the hub ({type(error).__name__}: {error}). Give a local copy, "
            "for LongBench with --longbench-data."
        ) from error
    finally:
        logger.setLevel(level)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task, without the harness' filter names."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in row.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    }


def _usage(model: DraftApproxLM) -> dict[str, float]:
    """Means over the answers of this process."""
    made = model.generations
    if not made:
        return {"answers": 0}
    return {
        "answers": len(made),
        "prompt_tokens": mean(one.usage.prompt_tokens for one in made),
        "kept_prompt_tokens": mean(one.usage.kept_prompt_tokens for one in made),
        "kept_kv": mean(one.usage.kept_kv for one in made),
        "first_token_seconds": mean(one.timings.get("lookahead", 0) + one.timings.get("prefill", 0) for one in made),
        "truncated_prompts": model.truncated,
    }
