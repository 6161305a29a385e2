"""LangChain parts. Needs `langchain-core`: pip install "draftapprox-integrations[langchain]"."""

from ..errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        'LangChain is not installed: pip install "draftapprox-integrations[langchain]"'
    ) from error

from .chat_model import ChatSpecKV
from .compressor import SpecPCCompressor
from .llm import SpecKVLLM

__all__ = ["ChatSpecKV", "SpecKVLLM", "SpecPCCompressor"]
