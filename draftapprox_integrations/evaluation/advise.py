"""When each method pays: time to the first token, time per token and memory, from the models' configs alone.

A roofline estimate: a prefill is bound by arithmetic, a decoding step by memory traffic. What share of the device's
limits a real run reaches is an assumption (`Device`), so compare methods by it, not seconds with a clock. Bytes are
exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ..errors import InvalidInputError, ModelLoadError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Limits of an accelerator, and the share of them that is reached.

    Attributes:
        name: Its name.
        memory: Bytes.
        flops: Dense 16-bit operations per second.
        bandwidth: Bytes per second.
        compute_share, memory_share: Shares that a prefill and a decoding step reach.
        step_seconds: What a decoding step costs beside its traffic.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    compute_share: float = 0.5
    memory_share: float = 0.7
    step_seconds: float = 0.0005


# From the makers' data sheets: memory, dense bfloat16, bandwidth.
DEVICES = {
    device.name: device
    for device in (
        Device("H200", 141e9, 989e12, 4.8e12),
        Device("H100", 80e9, 989e12, 3.35e12),
        Device("A100", 80e9, 312e12, 2.0e12),
        Device("L40S", 48e9, 362e12, 0.864e12),
        Device("L4", 24e9, 121e12, 0.3e12),
        Device("RTX4090", 24e9, 165e12, 1.008e12),
    )
}


@dataclass(frozen=True)
class Sizes:
    """What a model costs.

    Attributes:
        parameters: All of them.
        active: Those that a token passes through, without the input embedding; fewer than all in a mixture of experts.
        attention: Sum over full-attention layers of heads times head dimension.
        pair_bytes: Bytes of one token's KV pairs in all layers that keep every token.
        fixed_bytes: Bytes of sliding-window layers once their window is full.
        bytes_per_value: Of weights and pairs.
    """

    parameters: int
    active: int
    attention: int
    pair_bytes: int
    fixed_bytes: int
    bytes_per_value: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.bytes_per_value

    @classmethod
    def of(cls, model: str | PreTrainedConfig, bytes_per_value: int = 2) -> Sizes:
        """Of a config, or of a model's name; weights are not loaded.

        Raises:
            ModelLoadError: the config cannot be read, or is not one of a causal language model.
        """
        try:
            config = AutoConfig.from_pretrained(model) if isinstance(model, str) else model
            with torch.device("meta"):
                made = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError) as error:
            raise ModelLoadError(f"the config of {model} cannot be read: {error}") from error
        text = config.get_text_config()
        parameters = made.num_parameters()
        embedding = made.get_input_embeddings().weight.numel()
        tied = bool(getattr(text, "tie_word_embeddings", False))
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        layers, window = text.num_hidden_layers, getattr(text, "sliding_window", None)
        kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * layers)
        full = sum(kind == "full_attention" for kind in kinds)
        sliding = sum(kind == "sliding_attention" for kind in kinds)
        pair = 2 * kv_heads * head_dim * bytes_per_value
        active = parameters - (0 if tied else embedding) - _idle_experts(text, made)
        return cls(
            parameters, active, full * heads * head_dim, full * pair, sliding * pair * (window or 0), bytes_per_value
        )


@dataclass(frozen=True)
class Estimate:
    """What a method costs for one request.

    Attributes:
        method: Its name with its budget.
        first_token: Seconds to the first token.
        per_token: Seconds for each further one, alone on the device.
        cache_bytes: Bytes of its cache while it decodes.
        requests: How many such caches fit beside the weights.
    """

    method: str
    first_token: float
    per_token: float
    cache_bytes: int
    requests: int


def advise(
    target: Sizes,
    draft: Sizes,
    context: int,
    device: Device,
    *,
    lookahead: int = 64,
    speckv: Sequence[int] = (512,),
    specpc: Sequence[int] = (2048,),
) -> list[Estimate]:
    """Estimates for the full cache, SpecKV, SpecPC and the cascade.

    Args:
        target, draft: Their sizes.
        context: Tokens of the prompt, >= 1.
        device: Where both run.
        lookahead: Tokens that the draft writes for SpecKV.
        speckv: KV pairs that it keeps per head.
        specpc: Tokens that it keeps.

    Raises:
        InvalidInputError: a number is below 1.
    """
    for name, values in (("context", [context]), ("speckv", speckv), ("specpc", specpc), ("lookahead", [lookahead])):
        if any(value < 1 for value in values):
            raise InvalidInputError(f"{name} must be >= 1; got {list(values)}")
    read = _prefill(draft, context, device)
    drafted = read + sum(_step(draft, context + i, device) for i in range(1, lookahead))
    free = device.memory - target.weight_bytes
    made = [_estimate("full", _prefill(target, context, device), context, target, device, free)]
    free -= draft.weight_bytes
    for pairs in speckv:
        first = drafted + _prefill(target, context, device)
        made.append(_estimate(f"speckv {pairs}", first, min(pairs, context), target, device, free))
    for tokens in specpc:
        kept = min(tokens, context)
        first = read + _prefill(target, kept, device)
        made.append(_estimate(f"specpc {tokens}", first, kept, target, device, free))
        for pairs in speckv:
            first = drafted + _prefill(target, kept, device)
            made.append(_estimate(f"speckvpc {tokens} {pairs}", first, min(pairs, kept), target, device, free))
    return made


def as_rows(found: Sequence[Estimate]) -> list[Mapping[str, Any]]:
    """For a table: seconds, GiB, and each as a ratio to the full cache's."""
    full = found[0]
    return [
        {
            "method": one.method,
            "first token, s": round(one.first_token, 3),
            "x full": round(one.first_token / full.first_token, 2),
            "per token, ms": round(1000 * one.per_token, 2),
            "cache, GiB": round(one.cache_bytes / GIB, 3),
            "requests that fit": one.requests,
        }
        for one in found
    ]


def _estimate(method: str, first: float, kept: int, target: Sizes, device: Device, free: float) -> Estimate:
    cache = kept * target.pair_bytes + target.fixed_bytes
    return Estimate(method, first, _step(target, kept, device), cache, max(0, int(free // max(cache, 1))))


def _prefill(model: Sizes, tokens: int, device: Device) -> float:
    """Seconds to read a prompt: two operations per weight and token, four per pair of tokens and channel, halved."""
    operations = 2 * model.active * tokens + 2 * model.attention * tokens * tokens
    return operations / (device.flops * device.compute_share) + device.step_seconds


def _step(model: Sizes, pairs: int, device: Device) -> float:
    """Seconds to write a token: its weights and the kept pairs are read once."""
    traffic = model.active * model.bytes_per_value + pairs * model.pair_bytes + model.fixed_bytes
    return traffic / (device.bandwidth * device.memory_share) + device.step_seconds


def _idle_experts(config: PreTrainedConfig, model: torch.nn.Module) -> int:
    """Parameters of experts that a token does not pass through."""
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", None)
    if not count or not used:
        return 0
    experts = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    return int(experts * (count - used) // count)
