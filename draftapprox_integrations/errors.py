"""Every error this package raises on purpose. Each message says what happened and what to do about it."""

from __future__ import annotations


class DraftApproxError(Exception):
    """Base class of everything raised on purpose, but for a bad setting of a config or a loader: a `ValueError`."""


class ModelLoadError(DraftApproxError, OSError):
    """The model could not be found or read: wrong path, wrong hub id, broken file, no network."""


class MissingDependencyError(DraftApproxError, ImportError):
    """An optional package is needed and not installed. The message gives the `pip install` line."""


class UnsupportedModelError(DraftApproxError, TypeError):
    """The model's attention cannot be observed exactly (soft-capping, sinks, own kernels)."""


class InvalidInputError(DraftApproxError, ValueError):
    """The passages, the query, the ids or the budget cannot be used as given."""


class BudgetError(InvalidInputError):
    """Text that must be kept does not fit the token budget."""


class PromptTooLongError(InvalidInputError):
    """The prompt and the tokens to write exceed a model's context window."""


class ScoringError(DraftApproxError, ArithmeticError):
    """A model produced NaN, or infinite attention scores."""


class GenerationTimeoutError(DraftApproxError, TimeoutError):
    """An answer took longer than the caller wanted to wait; its generation has been cancelled."""


class EngineClosedError(DraftApproxError, RuntimeError):
    """The engine was closed before or while it served this request."""


class ServiceUnavailableError(DraftApproxError, ConnectionError):
    """A service (`draftapprox serve`) is not there, has no place for this request, or failed."""
