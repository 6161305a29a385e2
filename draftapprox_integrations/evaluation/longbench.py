"""LongBench and LongBench-v2 (Bai et al. 2024, 2025) by lm-evaluation-harness' own tasks, from a hub or a local copy.

A local copy has one file of JSON lines per task, named as the harness names the task: trec.jsonl, as in LongBench's
data.zip; of LongBench-v2 detective.jsonl with the fields context, question, choices and answer (0 to 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InvalidInputError

# The tasks of the paper's evaluation.
PAPER_TASKS = tuple(
    f"longbench_{name}"
    for name in (
        "2wikimqa", "gov_report", "hotpotqa", "lcc", "multi_news", "multifieldqa_en", "musique", "narrativeqa",
        "qasper", "qmsum", "repobench-p", "samsum", "trec", "triviaqa",
    )
)  # fmt: skip


def local_longbench(names: Sequence[str], data: Path, folder: Path) -> list[str]:
    """LongBench tasks on a local copy: files that `lm_eval.simple_evaluate(tasks=...)` takes.

    Args:
        names: The harness' names, such as "longbench_trec" or "longbench2_detective".
        data: The folder of the copy.
        folder: Where these files are written.

    Raises:
        InvalidInputError: there is no such task, or the copy lacks its file.
    """
    import yaml
    from lm_eval import tasks

    home, made = Path(str(tasks.__file__)).parent, []
    for name in names:
        kind, _, short = name.partition("_")
        own = next((path for path in sorted((home / kind).glob("*.yaml")) if _names(path, name)), None)
        if own is None:
            raise InvalidInputError(f"lm-evaluation-harness has no task {name}")
        rows = data / f"{short}.jsonl"
        if not rows.is_file():
            raise InvalidInputError(f"{name} needs {rows.name}, which is not in {data}")
        changes = {
            "include": str(own),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"train" if kind == "longbench2" else "test": str(rows.resolve())}},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(changes), encoding="utf-8")
        made.append(str(path))
    return made


def _names(path: Path, task: str) -> bool:
    return f"task: {task}" in path.read_text(encoding="utf-8").splitlines()
