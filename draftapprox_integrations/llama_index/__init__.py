"""LlamaIndex parts. Needs `llama-index-core`: pip install "draftapprox-integrations[llama-index]"."""

from ..errors import MissingDependencyError

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        'LlamaIndex is not installed: pip install "draftapprox-integrations[llama-index]"'
    ) from error

from .ingestion import SpecPCIngestion
from .llm import SpecKVLLM
from .postprocessor import SpecPCPostprocessor
from .rag import rag_query_engine

__all__ = ["SpecKVLLM", "SpecPCIngestion", "SpecPCPostprocessor", "rag_query_engine"]
