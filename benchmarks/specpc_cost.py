"""Time and peak memory of joint attention scores, beside a plain forward pass of the same draft.

    python -m benchmarks.specpc_cost

Both run alternately in one process; ratios are medians over neighbouring runs. The plain pass computes the logits of
the last token only. Memory is the peak minus the memory resident before (Linux: VmHWM; CUDA: its allocator).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from draftapprox_integrations import LoadedModel, SpecPCConfig, load_model
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance

from .common import machine, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    draft = load_model(args.draft)
    print(f"{machine()}\ndraft {draft.name} ({draft.dtype}), window {args.window}, {args.runs} runs\n")
    rows = []
    for tokens in args.tokens:
        plain, scoring = passes(draft, tokens, args.window)
        plain()
        scoring()
        times = [(seconds(plain), seconds(scoring)) for _ in range(args.runs)]
        ratio = statistics.median(b / a for a, b in times)
        plain_s, scoring_s = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append([f"{tokens:,}", f"{plain_s:.2f} s", f"{scoring_s:.2f} s", f"{ratio:.3f}"])
    for row, tokens in zip(rows, args.tokens, strict=True):  # after the times: measuring memory slows allocation
        plain, scoring = passes(draft, tokens, args.window)
        own, with_scores = (peak_bytes(run) for run in (plain, scoring))
        row += [
            f"{own / 2**20:.0f} MiB",
            f"{with_scores / 2**20:.0f} MiB",
            f"{100 * (with_scores - own) / own:+.1f}%",
            f"{(with_scores - own) / tokens / 1024:+.2f} KiB",
        ]
    header = ["tokens", "forward", "scoring", "ratio", "forward's peak", "scoring's peak", "extra", "extra per token"]
    print(table(header, rows))


def passes(draft: LoadedModel, tokens: int, window: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions: a plain forward pass over random ids, and one with scores."""
    view = attention_view(draft.model)
    ids = torch.randint(100, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))

    def plain() -> None:
        with torch.inference_mode():
            draft.model(ids.to(draft.device), use_cache=False, logits_to_keep=1)

    def scoring() -> None:
        read_importance(view, ids, torch.ones_like(ids), window, SpecPCConfig(), draft_tokens=False)

    return plain, scoring


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one run, in seconds."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak memory of one run minus the memory used before, in bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed tensors return to the system
    libc.malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
