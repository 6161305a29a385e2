"""LangChain parts. Needs `langchain-core`: pip install "draftapprox-integrations[langchain]"."""

from ..errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        'LangChain is not installed: pip install "draftapprox-integrations[langchain]"'
    ) from error

from .compressor import SpecPCCompressor

__all__ = ["SpecPCCompressor"]
