"""LangChain parts. Needs `langchain-core`: pip install "draftapprox-integrations[langchain]"."""

from typing import TYPE_CHECKING, Any

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
from .rag import rag_chain

if TYPE_CHECKING:
    from .middleware import SpecPCMiddleware

__all__ = ["ChatSpecKV", "SpecKVLLM", "SpecPCCompressor", "SpecPCMiddleware", "rag_chain"]


def __getattr__(name: str) -> Any:
    """The middleware on first use: it alone needs the package `langchain`, which is more than `langchain-core`."""
    if name != "SpecPCMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import langchain.agents.middleware  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'SpecPCMiddleware needs LangChain\'s agents: pip install "draftapprox-integrations[agents]"'
        ) from error
    from .middleware import SpecPCMiddleware

    return SpecPCMiddleware
