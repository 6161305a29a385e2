"""`benchmarks.gpu` runs: every stage, at sizes that a CPU does in seconds. Its numbers mean nothing here."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_models import SCALES, limits
from benchmarks.gpu_verdicts import verdicts

SMALL = SCALES["small"]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.thorough
def test_every_stage_writes_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "results" / "gpu.jsonl"
    assert gpu.main(["--shapes", "small", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row for row in rows if "error" in row] == []
    assert {row["stage"] for row in rows} == {"build", *gpu.stages(SMALL), "verdict"}
    assert {row["stage"] for row in rows if "skipped" in row} <= {"kvpress", "kernels"}
    assert [row for row in rows if "warning" in row] == []
    for row in rows:
        assert {"machine", "torch", "transformers", "commit", "shapes", "at_s"} <= row.keys()
    compared = [row for row in rows if row["stage"] == f"compare {SMALL.lengths[1]}"]
    assert [row["way"] for row in compared] == ["full", "speckv", "speckvpc", "specpc"]
    assert all(row["first_s"] > 0 for row in compared)
    claims = [row for row in rows if row["stage"] == "verdict"]
    assert [row["claim"] for row in claims if row["value"] is None and "kvpress" not in row["claim"]] == []
    assert all(row["pass"] is None for row in claims), "claims about real shapes are not judged at these"


def test_a_stage_that_fails_or_comes_too_late_leaves_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(lab: Any) -> Any:
        yield {"way": "first"}
        logging.getLogger("draftapprox_integrations.kernels.dispatch").warning("the kernel failed")
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(gpu, "stages", lambda scale: {"broken": broken, "limits": limits})
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--shapes", "small", "--out", str(out)]) == 1
    found = [row for row in rows_of(out) if row["stage"] in ("broken", "limits")]
    assert [row.get("error") for row in found] == [None, "RuntimeError: CUDA out of memory", None, None]
    assert [row.get("warning") for row in found] == [None, None, "the kernel failed", None]

    assert gpu.main(["--shapes", "small", "--minutes", "0", "--out", str(out)]) == 0
    late = [row for row in rows_of(out) if "not_run" in row]
    assert [row["stage"] for row in late] == ["broken", "limits"]


def test_verdicts_judge_ratios() -> None:
    rows = [
        {"stage": "compare 32768", "way": "speckv", "over_full": 1.2, "peak_gib": 4.2, "tokens": 32_768},
        {"stage": "serve 32", "way": "submit", "tokens_per_s": 90.0},
        {"stage": "serve 64", "way": "submit", "tokens_per_s": 99.0},
        {"stage": "full batch", "way": "model.generate", "tokens_per_s": 50.0},
    ]
    found = {row["claim"]: (row["value"], row["pass"]) for row in verdicts(rows, SCALES["14b"]) if row["value"]}
    assert found == {
        "first token of SpecKV over the full cache, 32768": (1.2, True),
        "peak of SpecKV over kvpress's SnapKV (recorded), 32768": (1.08, False),
        "tokens per second over model.generate": (1.98, False),
    }
