"""Token ids to text as they arrive, in time proportional to their number."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

# A decoder treats the first token of what it is given in a special way (SentencePiece drops its space), and at most the
# first 3 bytes may belong to a character that began before. So the window begins this many tokens before its end.
_CONTEXT_TOKENS = 12
# An incomplete character of up to 3 bytes decodes to as many U+FFFD at most.
_MAX_INCOMPLETE = 3
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The clean-up of transformers replaces " ." by ".", " n't" by "n't" and so on: it acts on runs of these characters.
_OUTSIDE_CLEAN_UP = re.compile(r"[^ .?!,'ntmsvre]")


class IncrementalDetokenizer:
    """Decodes token ids one by one; the pieces and the rest join to `tokenizer.decode(ids, skip_special_tokens=True)`.

    Only a short window of the last tokens is decoded. Text is held back while later tokens may change it: incomplete
    characters; runs of byte tokens such as `<0xE2>`, which are decoded as a whole; spaces that a clean-up may remove.

    Args:
        tokenizer: The target's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that were returned
        self._is_byte: dict[int, bool] = {}
        self._control: dict[int, str | None] = {}
        self._cleans_up = _cleans_up(tokenizer)
        self._uncleaned = ""

    def control_token(self, token: int) -> str | None:
        """The name of a token that `skip_special_tokens` hides; None for one that is text."""
        if token not in self._control:
            hidden = not self._decode([token]) and bool(self._tokenizer.decode([token], skip_special_tokens=False))
            self._control[token] = str(self._tokenizer.convert_ids_to_tokens(token)) if hidden else None
        return self._control[token]

    def feed(self, token: int) -> str:
        """Add a token and return the text that has become final; often empty."""
        if self.control_token(token) is not None:
            return ""
        self._window.append(token)
        if self._byte(token):
            return ""
        text = self._decode(self._window)
        final = len(text)
        while final > max(self._sent, len(text) - _MAX_INCOMPLETE) and text[final - 1] == "\ufffd":
            final -= 1
        piece = text[self._sent : final]
        self._sent = max(self._sent, final)
        self._shorten(text)
        if not self._cleans_up:
            return piece
        self._uncleaned += piece
        outside = [match.end() for match in _OUTSIDE_CLEAN_UP.finditer(self._uncleaned)]
        end = outside[-1] if outside else 0
        piece, self._uncleaned = self._uncleaned[:end], self._uncleaned[end:]
        return self._tokenizer.clean_up_tokenization(piece)

    def rest(self) -> str:
        """The text that is not final yet, as it is if no token follows."""
        rest = self._uncleaned + self._decode(self._window)[self._sent :]
        return self._tokenizer.clean_up_tokenization(rest) if self._cleans_up else rest

    def _shorten(self, text: str) -> None:
        """Move the window's begin, if what was returned last and what was not are spelled the same from there on."""
        if len(self._window) <= 2 * _CONTEXT_TOKENS or not self._sent:
            return
        start = len(self._window) - _CONTEXT_TOKENS
        while start and self._byte(self._window[start]) and self._byte(self._window[start - 1]):  # never within a run
            start -= 1
        window = self._window[start:]
        shorter = self._decode(window)
        held = len(text) - self._sent
        if shorter.endswith(text[self._sent - 1 :]):
            self._window, self._sent = window, len(shorter) - held

    def _byte(self, token: int) -> bool:
        if token not in self._is_byte:
            name = self._tokenizer.convert_ids_to_tokens(token)
            self._is_byte[token] = isinstance(name, str) and _BYTE_TOKEN.fullmatch(name) is not None
        return self._is_byte[token]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _cleans_up(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer.decode` removes spaces before punctuation; transformers ignores the setting for BPE."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return type(model).__name__ != "BPE" or bool(forced)
