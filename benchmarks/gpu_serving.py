"""Serving stages of `benchmarks.gpu`: many requests at once, beside the largest batch of the full cache that fits."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator

import torch

from draftapprox_integrations import SpecKVConfig
from draftapprox_integrations.results import Generation

from .gpu_models import Lab, Row, digits, weight_bytes


def serve(lab: Lab, max_batch_size: int) -> Iterator[Row]:
    """Tokens per second when all requests are submitted at once."""
    scale = lab.scale
    prompts = [lab.prompt(scale.request_tokens, seed) for seed in range(scale.requests)]
    config = SpecKVConfig(max_capacity_prompt=scale.budget)
    answers: list[Generation] = []
    before = lab.clean()
    with lab.engine(config, lab.draft, max_batch_size=max_batch_size) as kv:
        for stream in kv.submit(prompts[:2], max_new_tokens=2):  # warms up
            stream.result()

        def run() -> None:
            answers.extend(stream.result() for stream in kv.submit(prompts, max_new_tokens=scale.request_new))

        seconds = lab.seconds(run)
    tokens = sum(len(answer.token_ids) for answer in answers)
    if tokens != scale.requests * scale.request_new:
        raise AssertionError(f"{scale.requests * scale.request_new} tokens were asked for, {tokens} came")
    queued = sorted(answer.timings.get("queued", 0.0) for answer in answers)
    yield {
        "way": "submit",
        "max_batch_size": max_batch_size,
        **_about(lab),
        "tokens_per_s": digits(tokens / seconds),
        "whole_s": digits(seconds),
        "queued_median_s": digits(statistics.median(queued)),
        "queued_longest_s": digits(queued[-1]),
        "peak_gib": lab.peak_gib(before),
    }


@torch.inference_mode()
def full_batch(lab: Lab) -> Iterator[Row]:
    """Tokens per second of `model.generate` with the largest batch that fits; no more rows than there are requests.

    The size is predicted from the peak of a small batch, and made smaller while memory runs out: doubling from 1 would
    cost as much time as the measurement. One batch is timed; all requests would take several, the last one less full.
    """
    scale = lab.scale
    peak = lab.clean()
    rows = scale.requests
    if lab.device.type == "cuda":
        probe = min(4, scale.requests)
        _generate(lab, probe, 2)
        peak = torch.cuda.max_memory_allocated() - peak
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        rows = max(1, min(rows, int(0.97 * free * probe / peak)))
    tried = []
    while True:
        before = lab.clean()
        tried.append(rows)
        try:
            _generate(lab, min(rows, 2), 2)  # warms up
            seconds = _generate(lab, rows, scale.request_new)
            break
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows = rows * 7 // 8
        gc.collect()  # the error, and what its frames held, is gone here
    yield {
        "way": "model.generate",
        "batch": rows,
        "tried": tried,
        **_about(lab),
        "tokens_per_s": digits(rows * scale.request_new / seconds),
        "whole_s": digits(seconds),
        "peak_gib": lab.peak_gib(before),
        "weights_gib": digits(weight_bytes(lab.target.model) / 2**30),
    }


def _generate(lab: Lab, rows: int, new: int) -> float:
    batch = lab.batch([lab.prompt(lab.scale.request_tokens, seed) for seed in range(rows)])
    model = lab.target.model
    return lab.seconds(lambda: model.generate(**batch, max_new_tokens=new, do_sample=False))  # type: ignore[operator]


def _about(lab: Lab) -> Row:
    return {"requests": lab.scale.requests, "tokens": lab.scale.request_tokens, "new_tokens": lab.scale.request_new}
