"""Draft-based Approximate Inference (Galim et al., ICLR 2026) for RAG pipelines.

Importing this package loads neither torch nor a framework; each name loads what it needs when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import CompressionConfig, KVQuantization, SpecKVConfig, SpecKVPCConfig, SpecPCConfig
    from .engine.engine import SpecKV
    from .engine.patch import patch_model
    from .models.loading import LoadedModel, load_model
    from .results import CompressionResult
    from .speckv.text_draft import TextDraft
    from .specpc.compressor import SpecPC
    from .specpc.store.passage_store import PassageStore

_HOME = {
    "CompressionConfig": ".config",
    "KVQuantization": ".config",
    "SpecKV": ".engine.engine",
    "SpecKVConfig": ".config",
    "SpecKVPCConfig": ".config",
    "PassageStore": ".specpc.store.passage_store",
    "SpecPC": ".specpc.compressor",
    "SpecPCConfig": ".config",
    "CompressionResult": ".results",
    "TextDraft": ".speckv.text_draft",
    "LoadedModel": ".models.loading",
    "load_model": ".models.loading",
    "patch_model": ".engine.patch",
}

__all__ = [
    "CompressionConfig",
    "CompressionResult",
    "KVQuantization",
    "LoadedModel",
    "PassageStore",
    "SpecKV",
    "SpecKVConfig",
    "SpecKVPCConfig",
    "SpecPC",
    "SpecPCConfig",
    "TextDraft",
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
