"""Many threads, one draft: every request gets what it gets alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from draftapprox_integrations import LoadedModel, SpecPC, SpecPCConfig
from draftapprox_integrations.models.attention import _observer

pytestmark = pytest.mark.thorough

THREADS, REQUESTS, ROUNDS = 8, 50, 3


def passages(seed: int) -> list[str]:
    return [f"Box {i} holds {(i * 37 + seed) % 90} apples. It stands in row {i % 7}." for i in range(6)]


def test_8_threads_equal_one_thread(tiny: LoadedModel) -> None:
    engine = SpecPC(tiny)
    requests = [(passages(n % 20), f"How many apples are in box {n % 6}?", 20 + n % 30) for n in range(REQUESTS)]

    def run(request: tuple[list[str], str, int]) -> Any:
        result = engine.compress(request[0], request[1], max_tokens=request[2])
        return [(p.text, p.kept, p.score, p.heat) for p in result.passages]

    expected = [run(request) for request in requests]
    with ThreadPoolExecutor(THREADS) as pool:
        rounds = [pool.map(run, requests) for _ in range(ROUNDS)]
        for found in rounds:
            assert list(found) == expected


def test_select_and_compress_and_plain_use_at_once(tiny: LoadedModel) -> None:
    """One thread uses the user's model as it is, while others have the same weights observed."""
    engine = SpecPC(tiny, SpecPCConfig(max_capacity_prompt=64))
    ids = torch.arange(2, 90)[None]
    with torch.no_grad():
        logits = tiny.model(ids).logits
    kept = engine.select(ids).indices[0].tolist()
    text = engine.compress(passages(1), "How many?", max_tokens=30).passages[0].text

    def plain(_: Any) -> Any:
        assert _observer.get() is None
        with torch.no_grad():
            return torch.equal(tiny.model(ids).logits, logits)

    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(plain, i) for i in range(40)]
        jobs += [pool.submit(lambda: engine.select(ids).indices[0].tolist() == kept) for _ in range(40)]
        jobs += [
            pool.submit(lambda: engine.compress(passages(1), "How many?", max_tokens=30).passages[0].text == text)
            for _ in range(40)
        ]
        assert all(job.result() for job in jobs)
