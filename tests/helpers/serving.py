"""What the tests of both frameworks' LLM classes share: settings, a prompt, and the engine called directly."""

import time
from typing import Any

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig
from draftapprox_integrations.results import Generation

TIGHT = SpecKVConfig(max_capacity_prompt=32, window_size=8, lookahead_tokens=4)
FLOAT32 = {"dtype": "float32"}  # the embedded model's literal answers in bfloat16 depend on the CPU
LONG = "The old mill stands by the river. It was built in 1821 by Anton Berg. " * 4


def direct(model: LoadedModel, prompt: str, **options: Any) -> Generation:
    """What the engine writes."""
    return SpecKV(model, "self", TIGHT).generate(prompt, **{"max_new_tokens": 8, **options})[0]


def wait_until_idle(engine: SpecKV, seconds: float = 60) -> None:
    """Return once the engine has nothing to do; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not engine.is_idle:
        assert time.monotonic() < deadline, "the engine is still busy"
        time.sleep(0.002)
