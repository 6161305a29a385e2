"""Run the command line: as users do, in a process of its own, or in this one, which spares importing torch again."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from draftapprox_integrations.cli.app import app

DRAFTAPPROX = Path(sys.executable).parent / "draftapprox"


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code, and what it wrote to standard output and to standard error."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error on one line."""
        return " ".join(self.err.split())


def run_process(*arguments: Any, stdin: bytes = b"") -> Finished:
    done = subprocess.run(
        [DRAFTAPPROX, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=300,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_here(*arguments: Any, stdin: bytes = b"") -> Finished:
    done = CliRunner().invoke(app, [*map(str, arguments)], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Finished(done.exit_code, done.stdout, done.stderr)
