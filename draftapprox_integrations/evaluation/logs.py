"""Where results are logged beside their JSON files: Weights & Biases or TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, MissingDependencyError

LOGS = ("none", "wandb", "tensorboard")


def log_result(log: str, name: str, result: Mapping[str, Any], folder: Path) -> None:
    """Log a result of `evaluate`.

    Args:
        log: One of `LOGS`. W&B's own variables hold (WANDB_MODE=offline, WANDB_PROJECT, WANDB_DIR).
        name: Name of the run.
        result: The result.
        folder: TensorBoard's files go into its folder "tensorboard".

    Raises:
        InvalidInputError: there is no such log.
        MissingDependencyError: its package is not installed.
    """
    if log not in LOGS:
        raise InvalidInputError(f"log must be one of {', '.join(LOGS)}; got {log!r}")
    if log == "none":
        return
    values = {
        **{f"{task}/{metric}": value for task, row in result["scores"].items() for metric, value in row.items()},
        **{f"usage/{what}": value for what, value in result["usage"].items()},
        "seconds": result["seconds"],
    }
    if log == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise MissingDependencyError("--log wandb needs wandb: pip install wandb") from error
        with wandb.init(name=name, config={**result["run"], "environment": result["environment"]}) as run:
            run.log(values)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("--log tensorboard needs tensorboard: pip install tensorboard") from error
    with SummaryWriter(str(folder / "tensorboard" / name)) as writer:
        for what, value in values.items():
            writer.add_scalar(what, value)
