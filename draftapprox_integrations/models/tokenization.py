"""Text to tokens: encoding with character offsets, and counting tokens for a budget."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import InvalidInputError, ModelLoadError
from .locks import ForkSafeLock

# A callable returns the tokens of a text (tiktoken's encode, llama-index's Settings.tokenizer) or their number.
TokenizerSpec: TypeAlias = "str | os.PathLike[str] | PreTrainedTokenizerBase | Callable[[str], Any]"

_copies: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer]] = WeakKeyDictionary()
_lock = ForkSafeLock()


@dataclass(frozen=True)
class Encoded:
    """Token ids and their character spans; spans are in order and may touch or overlap."""

    ids: list[int]
    spans: list[tuple[int, int]]


class TextEncoder:
    """Encodes untrusted text: nothing in it becomes a special token.

    Uses a private copy of the tokenizer, because padding, truncation and special-token settings of a fast tokenizer are
    shared state that other threads may change.

    Raises:
        InvalidInputError: a slow tokenizer, which has no character offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend = _private_copy(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the ids and character spans of each text, without special tokens."""
        encodings = self._backend.encode_batch([_without_surrogates(text) for text in texts], add_special_tokens=False)
        return [Encoded(list(e.ids), [(int(a), int(b)) for a, b in e.offsets]) for e in encodings]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without special tokens."""
        encodings = self._backend.encode_batch_fast(
            [_without_surrogates(text) for text in texts], add_special_tokens=False
        )
        return [len(e) for e in encodings]


def _private_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The copy that all encoders of a tokenizer share, as none changes it: a large one takes a second to make."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InvalidInputError(
            f"{type(tokenizer).__name__} has no character offsets. Load the fast tokenizer: "
            "AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    with _lock:
        tokens, made = _copies.get(tokenizer, (0, None))
        if made is None or tokens != len(tokenizer):  # tokens were added since
            made = copy.deepcopy(backend)
            made.no_padding()
            made.no_truncation()
            made.encode_special_tokens = True
            _copies[tokenizer] = (len(tokenizer), made)
        return made


class TokenCounter:
    """Counts tokens with the target model's tokenizer.

    Args:
        spec: A transformers tokenizer, a folder or hub id of one, a tiktoken encoding, or a callable from text to
            tokens or to their number.
        name: Name for people; None takes the tokenizer's own name.

    Attributes:
        name: Name of the tokenizer, shown in results.
    """

    def __init__(self, spec: TokenizerSpec, name: str | None = None):
        if isinstance(spec, str | os.PathLike):
            spec = _load_tokenizer(os.fspath(spec))
        self._encoder: TextEncoder | None = None
        self._callable: Callable[[str], Any] | None = None
        if isinstance(spec, PreTrainedTokenizerBase):
            self.name = name or spec.name_or_path or type(spec).__name__
            if isinstance(getattr(spec, "backend_tokenizer", None), Tokenizer):
                self._encoder = TextEncoder(spec)
            else:
                slow = spec
                self._callable = lambda text: slow.encode(text, add_special_tokens=False)
        elif hasattr(spec, "encode_ordinary") or callable(spec):
            own_name = getattr(spec, "name", None) or getattr(spec, "__qualname__", None)
            self.name = str(name or own_name or type(spec).__name__)
            # tiktoken's `encode` refuses text that spells a special token; `encode_ordinary` encodes it as text.
            ordinary = getattr(getattr(spec, "__self__", spec), "encode_ordinary", None)
            self._callable = spec if ordinary is None else ordinary
            self.count(["a"])  # fails now rather than at the first call
        else:
            raise InvalidInputError(
                "tokenizer must be a transformers tokenizer, a folder or hub id of one, or a function from text to "
                f"tokens; got {type(spec).__name__}"
            )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without special tokens that a model would add.

        Raises:
            InvalidInputError: the user's function failed or returned neither tokens nor a number.
        """
        if self._encoder is not None:
            return self._encoder.count(texts)
        assert self._callable is not None
        return [_token_count(self._callable, _without_surrogates(text), self.name) if text else 0 for text in texts]


def _token_count(function: Callable[[str], Any], text: str, name: str) -> int:
    try:
        tokens = function(text)
        return int(tokens) if isinstance(tokens, Integral) else len(tokens)
    except Exception as error:  # the user's code may raise anything
        raise InvalidInputError(
            f"the tokenizer {name} must return the tokens of a text or their number; it raised "
            f"{type(error).__name__}: {error}"
        ) from error


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    path = Path(name).expanduser()
    local = path.exists()
    if not local and name.startswith((".", "/", "~")):
        raise ModelLoadError(f"there is no folder {name!r} to load a tokenizer from")
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path) if local else name, local_files_only=local
        )
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(f"could not load a tokenizer from {name!r}: {first_line}") from error
    return loaded


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can encode, by U+FFFD; the length stays the same."""
    if text.isascii():
        return text
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
