"""A model's fingerprint: tells fine-tunes apart, and does not depend on the precision the weights are loaded in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size")
_BLOCK_VALUES = 1 << 18  # read at once: few enough for a CPU's cache
_SAMPLES = 512  # values of each weight that are looked at again before a known fingerprint is returned
# float16 holds smaller numbers less precisely than bfloat16, so they count as 0.
_SMALLEST = 2.0**-16

_known: WeakKeyDictionary[PreTrainedModel, tuple[Any, str]] = WeakKeyDictionary()


def fingerprint(model: PreTrainedModel) -> str | None:
    """Two times 16 hex digits that tell models apart, independent of precision; None if weights are offloaded.

    The first part is a hash of the architecture's sizes and of all one-dimensional weights (norms, biases), the second
    of all others; each is rounded to bfloat16. Any change of a weight, such as a merged LoRA, changes it. Quantized
    models have the first part only: they keep these weights in full precision.
    """
    parameters = sorted(model.named_parameters())  # tied weights appear once
    if any(parameter.device.type == "meta" for _, parameter in parameters):
        return None
    state = _state([parameter.detach() for _, parameter in parameters])
    known = _known.get(model)
    if known is not None and known[0] == state:
        return known[1]
    config = model.config.get_text_config()
    vectors = hashlib.sha256(repr([getattr(config, name, None) for name in ("model_type", *_SIZES)]).encode())
    matrices = hashlib.sha256()
    quantized = any(name.endswith("qweight") for name, _ in model.named_buffers())
    for name, parameter in parameters:
        weight = parameter.detach()
        if weight.dim() == 1:
            vectors.update(name.encode())
            vectors.update(_bits(weight.cpu()).numpy().tobytes())
        elif _is_quantized(weight):
            quantized = True
        elif not quantized:
            matrices.update(f"{name} {tuple(weight.shape)}".encode())
            for sums in _row_sums(weight):
                matrices.update(sums.cpu().numpy().astype("<i8").tobytes())
    key = vectors.hexdigest()[:16] + ("" if quantized else f"-{matrices.hexdigest()[:16]}")
    _known[model] = (state, key)
    return key


def same_model(key: str, other: str) -> bool:
    """Whether two fingerprints may be those of one model; a quantized model's has only the first part."""
    (vectors, _, matrices), (other_vectors, _, other_matrices) = key.partition("-"), other.partition("-")
    return vectors == other_vectors and (not matrices or not other_matrices or matrices == other_matrices)


def _row_sums(weight: Tensor) -> Iterator[Tensor]:
    """Checksums of a weight's rows, LongTensor [rows], in blocks of rows.

    Each is the sum of the row's bits, each times an odd number of its column, modulo 2 ** 64: exact, so equal on every
    device, and different after the change of a single value.
    """
    matrix = weight.reshape(1, -1) if weight.dim() < 2 else weight.reshape(weight.shape[0], -1)
    if matrix.device.type not in ("cpu", "cuda"):
        matrix = matrix.cpu()
    factors = _column_factors(matrix.shape[1]).to(matrix.device)
    step = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    for block in matrix.split(step):
        yield (_bits(block).long() * factors).sum(dim=1)


def _bits(values: Tensor) -> Tensor:
    """The bits of values rounded to bfloat16, int16 of the same shape."""
    rounded = values.to(torch.bfloat16)
    return rounded.masked_fill(rounded.abs() < _SMALLEST, 0.0).contiguous().view(torch.int16)


def _column_factors(columns: int) -> Tensor:
    """Odd numbers without a pattern, LongTensor [columns]; the mixing of splitmix64, the same for ever."""
    mixed = torch.arange(1, columns + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return (mixed ^ (mixed >> 31)) | 1


def _is_quantized(weight: Tensor) -> bool:
    return type(weight) is not Tensor or not weight.is_floating_point() or weight.element_size() < 2


def _state(weights: list[Tensor]) -> Any:
    """What differs after weights were changed or replaced, found without reading them all."""
    seen = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype) for weight in weights]
    # Assignments to `.data` are not counted in `_version`; those of a merged adapter change most values of a matrix.
    samples = [_sample(weight) for weight in weights if type(weight) is Tensor and weight.numel()]
    return seen, hashlib.sha256(b"".join(samples)).digest()


def _sample(weight: Tensor) -> bytes:
    flat = weight.reshape(-1) if weight.is_contiguous() else weight[0].reshape(-1)
    values = flat[:: max(1, len(flat) // _SAMPLES)]
    return values.contiguous().cpu().view(torch.uint8).numpy().tobytes()
