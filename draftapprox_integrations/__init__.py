"""Draft-based Approximate Inference (Galim et al., ICLR 2026) for RAG pipelines.

Importing this package loads neither torch nor a framework; each name loads what it needs when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import KVQuantization, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
    from .models import LoadedModel, load_model
    from .results import CompressionResult
    from .speckv.generator import SpecKV
    from .speckv.patch import patch_model
    from .specpc.compressor import SpecPC
    from .specpc.store import PassageStore

_HOME = {
    "KVQuantization": ".config",
    "SpecKV": ".speckv.generator",
    "SpecKVConfig": ".config",
    "SpecKVPCConfig": ".config",
    "PassageStore": ".specpc.store",
    "SpecPC": ".specpc.compressor",
    "SpecPCConfig": ".config",
    "CompressionResult": ".results",
    "LoadedModel": ".models",
    "load_model": ".models",
    "patch_model": ".speckv.patch",
}

__all__ = [
    "CompressionResult",
    "KVQuantization",
    "LoadedModel",
    "PassageStore",
    "SpecKV",
    "SpecKVConfig",
    "SpecKVPCConfig",
    "SpecPC",
    "SpecPCConfig",
    "__version__",
    "load_model",
    "patch_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
