"""The methods on a GPU, at real shapes with random weights: one command, nothing to download.

    python -m benchmarks.gpu                   # about 8 minutes on one H200
    python -m benchmarks.gpu --shapes small    # seconds, on a CPU too; its numbers mean nothing

Target and draft have the shapes of Qwen2.5-14B and 0.5B in bfloat16 ("14b"; "7b": 7B and 3B). Random weights cost what
trained ones cost, and never end an answer, so that exactly as many tokens are written as were asked for. What comes out
of them is no answer: accuracy is measured elsewhere.

Each stage writes its rows to --out at once, as JSON lines. A stage that fails leaves a row with the error; one that
would begin after --minutes is listed as not run. Stages are ordered by importance. The last rows say for each claim
whether the numbers show it; --verdicts prints them again for a file.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers

import draftapprox_integrations

from .common import machine
from .gpu_kernels import captured, kernels
from .gpu_models import SCALES, Lab, Row, Scale, limits
from .gpu_serving import full_batch, serve
from .gpu_stages import compare, draft, error_text, kvpress, sparse, steps, variants
from .gpu_verdicts import read_rows, verdicts

Stage = Callable[[Lab], Iterable[Row]]

_ROOT = Path(__file__).parent.parent
_RESULTS = Path("benchmarks", "results", "gpu.jsonl")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SCALES, default="14b")
    parser.add_argument("--minutes", type=float, default=8, help="no stage begins later")
    parser.add_argument(
        "--out", type=Path, help=f"file for the rows (default: {_RESULTS}; small: in the temporary folder)"
    )
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only stages whose name begins with one of these")
    parser.add_argument("--list", action="store_true", help="list the stages and do nothing")
    parser.add_argument("--verdicts", type=Path, metavar="FILE", help="judge the rows of a file and do nothing else")
    args = parser.parse_args(arguments)
    scale = SCALES[args.shapes]
    chosen = {n: s for n, s in stages(scale).items() if not args.stages or n.startswith(tuple(args.stages))}
    if args.verdicts:
        rows = read_rows(args.verdicts)
        print(_lines(verdicts(rows, SCALES[rows[0]["shapes"]])))
        return 0
    if args.list or not chosen:
        print("\n".join(stages(scale)))
        return 0 if args.list else 2
    if scale.judge and not torch.cuda.is_available():
        parser.error(f"--shapes {args.shapes} needs CUDA; --shapes small runs anywhere")
    out = args.out or (_ROOT / _RESULTS if scale.judge else Path(tempfile.gettempdir(), "gpu_small.jsonl"))
    # A time limit from outside gets the verdicts too.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        recorder = Recorder(file, args.shapes, args.minutes)
        try:
            recorder.run_all(scale, chosen)
        finally:
            found = list(verdicts(recorder.rows, scale))
            for row in found:
                recorder.write("verdict", row)
            print(f"{_lines(found)}\n{out}")
            signal.signal(signal.SIGTERM, previous)
    return 1 if any("error" in row for row in recorder.rows) else 0


def stages(scale: Scale) -> dict[str, Stage]:
    """The stages by name, the most important first."""
    short, judged, longest = scale.lengths[0], scale.lengths[len(scale.lengths) // 2], scale.lengths[-1]
    few = max(1, scale.rounds - 1)
    first_batch, *other_batches = scale.batches
    found: dict[str, Stage] = {
        "limits": limits,
        f"compare {judged}": partial(compare, tokens=judged, rounds=scale.rounds),
        "draft": partial(draft, tokens=judged, rounds=scale.rounds),
        "steps": partial(steps, rounds=scale.rounds),
        f"serve {first_batch}": partial(serve, max_batch_size=first_batch),
        "full batch": full_batch,
        "snapkv": partial(variants, tokens=judged, names=("snapkv",)),
        "kvpress": partial(kvpress, tokens=judged),
        "sparse": partial(sparse, tokens=longest, rounds=few),
        f"compare {longest}": partial(compare, tokens=longest, rounds=few),
        "captured": captured,
        "kernels": kernels,
    }
    found |= {f"serve {size}": partial(serve, max_batch_size=size) for size in other_batches}
    found[f"compare {short}"] = partial(compare, tokens=short, rounds=scale.rounds)
    found["variants"] = partial(variants, tokens=judged, names=("adaptive", "int8", "int4", "self"))
    return found


class Recorder:
    """Runs stages one after the other and writes their rows.

    Args:
        file: Gets a JSON line per row, flushed at once.
        shapes: Name of the scale.
        minutes: No stage begins later.

    Attributes:
        rows: All rows so far.
    """

    def __init__(self, file: TextIO, shapes: str, minutes: float):
        self.rows: list[Row] = []
        self._warnings = _Warnings()
        self._file, self._started, self._limit = file, time.monotonic(), 60 * minutes
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else machine().split(";")[0]
        self._about: dict[str, Any] = {
            "shapes": shapes,
            "machine": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
        }

    def write(self, stage: str, row: Row) -> None:
        """Write one row."""
        row = {"stage": stage, **row, "at_s": round(time.monotonic() - self._started, 1), **self._about}
        self.rows.append(row)
        line = json.dumps(row)
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)

    def run_all(self, scale: Scale, chosen: dict[str, Stage]) -> None:
        """Build the models and run the stages."""
        labs: list[Lab] = []

        def build(_: Lab | None) -> Iterator[Row]:
            labs.append(Lab.build(scale))
            yield {"target": scale.target, "draft": scale.draft, "dtype": str(labs[0].target.dtype)}

        self._run("build", partial(build, None))
        if not labs:
            return
        for name, stage in chosen.items():
            if time.monotonic() - self._started >= self._limit:
                self.write(name, {"not_run": f"the limit of {self._limit / 60:g} minutes was over"})
                continue
            self._run(name, partial(stage, labs[0]))
            labs[0].clean()  # after the stage's frames, and what an error held, are gone

    def _run(self, name: str, stage: Callable[[], Iterable[Row]]) -> None:
        """Run one stage; an error ends it, and no other. What the package warns of becomes rows too."""
        started = time.monotonic()
        self._warnings.texts.clear()
        logging.getLogger("draftapprox_integrations").addHandler(self._warnings)
        try:
            for row in stage():
                self.write(name, row | {"stage_s": round(time.monotonic() - started, 1)})
        except ImportError as error:  # an optional package, or a part that this version of the package has not got
            self.write(name, {"skipped": str(error)})
        except Exception as error:
            self.write(name, {"error": error_text(error), "stage_s": round(time.monotonic() - started, 1)})
        finally:
            logging.getLogger("draftapprox_integrations").removeHandler(self._warnings)
        for text in self._warnings.texts:
            self.write(name, {"warning": text[:400]})


class _Warnings(logging.Handler):
    """Handler that keeps messages: a kernel that falls back to PyTorch says so in the log only."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.texts.append(record.getMessage())


def commit() -> str:
    """The package's commit, with "+" where files differ from it; "unknown" without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(draftapprox_integrations.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


def _lines(rows: Iterable[Row]) -> str:
    """Verdicts for people, one a line."""
    names = {True: "pass", False: "FAIL", None: "not judged"}
    return "\n".join(f"{names[row['pass']]:>10}  {row['claim']}: {row['value']} ({row['limit']})" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
