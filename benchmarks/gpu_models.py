"""Models of real shapes with random weights, prompts, and the measurements shared by the stages of `benchmarks.gpu`."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from draftapprox_integrations import LoadedModel, SpecKV, load_model
from draftapprox_integrations.config import MethodConfig
from draftapprox_integrations.results import Generation

Row = dict[str, Any]

_QWEN = {"vocab_size": 151_936, "max_position_embeddings": 131_072}
_SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
             "intermediate_size": 4864, "tie_word_embeddings": True},
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11_008, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18_944},
    "14b": {"hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
            "intermediate_size": 13_824},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 96, "vocab_size": 512, "max_position_embeddings": 4096},
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """What is measured at one size of models.

    Attributes:
        target, draft: Names of shapes.
        lengths: Prompt lengths in tokens, three ascending ones; the middle one is the one that is judged.
        budget: KV pairs that SpecKV keeps.
        steps: Tokens decoded where steps are timed, and the drafted lookahead's.
        rounds: Repeats of what is compared.
        requests, request_tokens, request_new: Requests of the serving stages, their prompts and answers in tokens.
        batches: Values of `max_batch_size`, the most important first.
        judge: Whether the claims speak of this size.
    """

    target: str
    draft: str
    lengths: tuple[int, ...] = (8192, 32_768, 65_536)
    budget: int = 512
    steps: int = 64
    rounds: int = 3
    requests: int = 64
    request_tokens: int = 8192
    request_new: int = 128
    batches: tuple[int, ...] = (32, 64, 8)
    judge: bool = True


SCALES = {
    "14b": Scale("14b", "0.5b"),
    "7b": Scale("7b", "3b"),
    "small": Scale("tiny", "tiny", (288, 320, 400), 64, 12, 1, 4, 96, 3, (4, 2), False),
}


@dataclass
class Lab:
    """Both models, and what the stages find out for each other.

    Attributes:
        scale: What to measure.
        target, draft: Models that never end by themselves.
        device: Where both are.
        copy_rate: Bytes per second that a copy reads and writes; 0 until `limits` ran.
    """

    scale: Scale
    target: LoadedModel
    draft: LoadedModel
    device: torch.device
    copy_rate: float = 0.0

    @classmethod
    def build(cls, scale: Scale) -> Lab:
        """Make both models on CUDA in bfloat16, or on the CPU in float32."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        target, draft = (load_model(random_model(name, device)) for name in (scale.target, scale.draft))
        return cls(scale, target, draft, device)

    @property
    def judged(self) -> int:
        """The prompt length at which first tokens are judged."""
        return self.scale.lengths[len(self.scale.lengths) // 2]

    def prompt(self, tokens: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = torch.randint(100, self.target.vocab_size - 100, (tokens,), generator=generator).tolist()
        return ids

    def batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Ids and mask of prompts of equal length, on the device, as arguments of a model."""
        ids = torch.tensor(rows, device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Wall time of one call, the device's work included."""
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started

    def clean(self) -> int:
        """Free what is not in use, reset the peak, and return the bytes in use."""
        gc.collect()
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak_gib(self, before: int) -> float | None:
        """Highest memory since `clean` beyond what was in use then; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)

    @contextmanager
    def engine(
        self,
        config: MethodConfig,
        draft: LoadedModel | Literal["self"] | None = None,
        target: LoadedModel | None = None,
        max_batch_size: int = 8,
    ) -> Iterator[SpecKV]:
        """An engine that is closed at the end, so that what it keeps on the device goes."""
        kv = SpecKV(target or self.target, draft, config, max_batch_size=max_batch_size)
        try:
            yield kv
        finally:
            kv.close()

    def generate(self, kv: SpecKV, ids: list[int], new: int) -> tuple[float, Generation]:
        """Wall time and result of one request that writes exactly `new` tokens."""
        found: list[Generation] = []
        seconds = self.seconds(lambda: found.extend(kv.generate(ids, max_new_tokens=new)))
        if len(found[0].token_ids) != new:
            raise AssertionError(f"{new} tokens were asked for, {len(found[0].token_ids)} came")
        return seconds, found[0]


def random_model(name: str, device: torch.device) -> PreTrainedModel:
    """A Qwen2 of the shape `name` with random weights and no token that ends a sequence."""
    config = Qwen2Config(**(_QWEN | _SHAPES[name]))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    assert isinstance(model, PreTrainedModel)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def limits(lab: Lab) -> Iterator[Row]:
    """What the device can do, and with it the time of a decoding step that reads every weight once."""
    cuda = lab.device.type == "cuda"
    source = torch.empty((2 << 30) if cuda else (64 << 20), dtype=torch.uint8, device=lab.device)
    copy = torch.empty_like(source)
    size = 8192 if cuda else 512
    left = torch.randn(size, size, dtype=lab.target.dtype, device=lab.device)
    copying = [lab.seconds(lambda: copy.copy_(source)) for _ in range(6)][1:]
    multiplying = [lab.seconds(lambda: left @ left) for _ in range(9)][1:]
    lab.copy_rate = 2 * source.numel() / statistics.median(copying)
    weights = weight_bytes(lab.target.model)
    embedding = lab.target.model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    read = weights if lab.target.model.config.tie_word_embeddings else weights - embedding.nbytes
    yield {
        "copy_tb_s": digits(lab.copy_rate / 1e12),
        "tflop_s": digits(2 * size**3 / statistics.median(multiplying) / 1e12),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        "weights_gb": digits(weights / 1e9),
        "draft_weights_gb": digits(weight_bytes(lab.draft.model) / 1e9),
        "step_floor_ms": digits(1000 * weights / lab.copy_rate),
        "step_floor_without_embedding_ms": digits(1000 * read / lab.copy_rate),
    }


def digits(number: float, count: int = 4) -> float:
    """`number` rounded to `count` significant digits."""
    if number == 0 or not math.isfinite(number):
        return number
    return round(number, count - 1 - math.floor(math.log10(abs(number))))
