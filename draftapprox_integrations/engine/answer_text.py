"""The text of an answer as its tokens arrive, up to the first stop string.

A stop string may be, or contain, a control token such as `<|im_start|>`, which the text itself never shows. So stop
strings are searched in two spellings of the answer: its text, and its text with one character for each control token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .detokenizer import IncrementalDetokenizer

# Private characters that stand for control tokens: each one that a stop string names, and any other.
_FIRST_CONTROL, _OTHER_CONTROL = 0x100000, "\U0010ffff"


class AnswerText:
    """Collects an answer token by token; the pieces that `feed` and `flush` return join to the text of the result.

    Text is held back while later tokens may still change it or turn it into the beginning of a stop string.

    Args:
        tokenizer: The target's.
        stop_strings: Texts before which the answer ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]):
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = _StopFinder(stop_strings, _control_names(tokenizer) if stop_strings else [])
        self._held = ""
        self._sent = 0

    def feed(self, token: int) -> str:
        """Add a token and return the text that can be shown; often empty."""
        name = self._detokenizer.control_token(token)
        if name is not None:
            if self._stops.has_controls:
                self._stops.add_control(name, len(self._detokenizer.rest()))
        else:
            piece = self._detokenizer.feed(token)
            self._stops.add_text(piece)
            self._held += piece
        length = max(self._stops.safe_length() - self._sent, 0)
        shown, self._held = self._held[:length], self._held[length:]
        self._sent += len(shown)
        return shown

    def stop_position(self) -> int | None:
        """Characters of the text before the first stop string, if the answer ends here; None without one."""
        if not self._stops.stop_strings:
            return None
        ended = self._stops.copy()
        ended.end(self._detokenizer.rest())
        return ended.position()

    def flush(self, text: str) -> str:
        """Return what is missing of the result's whole `text`."""
        return text[self._sent :]


class _Search:
    """Looks for the first of several texts in a text that arrives in pieces; remembers only its end.

    Attributes:
        position: Characters before the first match; None without one.
        begin: Characters before the part that is remembered.
    """

    def __init__(self, wanted: Sequence[str]):
        self._wanted, self._longest = wanted, max(map(len, wanted), default=1)
        self.position: int | None = None
        self.begin, self._end = 0, ""

    @property
    def length(self) -> int:
        """Characters so far."""
        return self.begin + len(self._end)

    def add(self, piece: str) -> None:
        text = self._end + piece
        starts = [start for wanted in self._wanted if (start := text.find(wanted)) >= 0]
        if starts and self.position is None:
            self.position = self.begin + min(starts)
        forgotten = max(len(text) - self._longest + 1, 0)
        self.begin, self._end = self.begin + forgotten, text[forgotten:]

    def safe_length(self) -> int:
        """Characters that are not part of a match, whatever follows."""
        if self.position is not None:
            return self.position
        for start in range(len(self._end)):
            if any(wanted.startswith(self._end[start:]) for wanted in self._wanted):
                return self.begin + start
        return self.length


class _StopFinder:
    """Searches stop strings in an answer's text, with and without its control tokens.

    Args:
        stop_strings: As for `AnswerText`.
        control_names: Names of the tokenizer's control tokens.

    Attributes:
        stop_strings: As given.
        has_controls: Whether one contains the name of a control token.
    """

    def __init__(self, stop_strings: Sequence[str], control_names: Sequence[str]):
        self.stop_strings = stop_strings
        # A name counts as a whole, so the stop string "user" is not found in <|user|>.
        names = [name for name in control_names if any(name in stop for stop in stop_strings)]
        self._characters = {name: chr(_FIRST_CONTROL + index) for index, name in enumerate(names)}
        spelled = [self._spell(stop) for stop in stop_strings]
        spelled = [stop for stop, text in zip(spelled, stop_strings, strict=True) if stop != text]
        self.has_controls = bool(spelled)
        self._text, self._spelled = _Search(stop_strings), _Search(spelled)
        self._controls: list[int] = []  # positions in `_spelled`
        self._waiting: list[tuple[int, str]] = []  # control tokens after text that is not final yet: position, name
        self._earlier_controls = 0

    def add_text(self, piece: str) -> None:
        """Add final text."""
        while self._waiting and (length := self._waiting[0][0] - self._text.length) <= len(piece):
            self._add(piece[: max(length, 0)])
            piece = piece[max(length, 0) :]
            self._add_control(self._waiting.pop(0)[1])
        self._add(piece)

    def add_control(self, name: str, held: int) -> None:
        """Add a control token after `held` characters that are not final yet."""
        self._waiting.append((self._text.length + held, name))
        self.add_text("")

    def end(self, rest: str) -> None:
        """Add the last text, and all control tokens that wait."""
        self.add_text(rest)
        for _, name in self._waiting:
            self._add_control(name)
        self._waiting = []

    def position(self) -> int | None:
        """Characters of the text before the first stop string; None without one."""
        found = [] if self._text.position is None else [self._text.position]
        if self._spelled.position is not None:
            found.append(self._without_controls(self._spelled.position))
        return min(found, default=None)

    def safe_length(self) -> int:
        """Characters of the text that come before any stop string, whatever follows."""
        if not self.has_controls:
            return self._text.safe_length()
        return min(self._text.safe_length(), self._without_controls(self._spelled.safe_length()))

    def copy(self) -> _StopFinder:
        other = copy.copy(self)
        other._text, other._spelled = copy.copy(self._text), copy.copy(self._spelled)
        other._controls, other._waiting = list(self._controls), list(self._waiting)
        return other

    def _spell(self, stop: str) -> str:
        for name in sorted(self._characters, key=len, reverse=True):
            stop = stop.replace(name, self._characters[name])
        return stop

    def _add(self, piece: str) -> None:
        self._text.add(piece)
        if self.has_controls:
            self._spelled.add(piece)

    def _add_control(self, name: str) -> None:
        self._controls.append(self._spelled.length)
        self._spelled.add(self._characters.get(name, _OTHER_CONTROL))
        while self._controls and self._controls[0] < self._spelled.begin and self._spelled.position is None:
            self._controls.pop(0)
            self._earlier_controls += 1

    def _without_controls(self, position: int) -> int:
        """The position in the text of a position in the spelling with control tokens."""
        return position - self._earlier_controls - sum(control < position for control in self._controls)


def _control_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return sorted({*tokenizer.all_special_tokens, *(token.content for token in added if token.special)})
