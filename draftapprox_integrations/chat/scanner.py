"""Split a model's answer, piece by piece, into plain text, thoughts and the places where tool calls are written.

Every character is looked at a bounded number of times, whatever the answer holds and however it is cut: outside a
string no JSON has a "<" or a backslash, so a call that cannot become JSON ends there, and an answer with many openings
is not read to its end for each.
"""

from __future__ import annotations

import re
from collections.abc import Callable

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_THINK, _END_OF_THOUGHT = "<think>", "</think>"
_MARKERS = ("[TOOL_CALLS]", "<|python_tag|>")  # Mistral's and Llama's
_SPACE = re.compile(r"\s*")
_SURPLUS = re.compile(r"[\s}\]]*")  # small models close one bracket too many
_TAG = re.compile(rf"{OPEN}|{CLOSE}")
_OUTSIDE_STRING = re.compile(r'["{}\[\]<\\]')
_IN_STRING = re.compile(r'["\\]')


class AnswerScanner:
    """Incremental scanner of one answer.

    Args:
        found: Called with the text of each call: a JSON value, if its brackets are to be believed, or what cannot
            become JSON. The flag tells whether it is marked as a call; without, it is the whole answer and may be
            another JSON value. Returns whether it is a call.
        in_thought: Whether the answer begins inside a thought, because the prompt ends with `<think>`.
    """

    def __init__(self, found: Callable[[str, bool], bool], in_thought: bool = False):
        self._found = found
        self._text = ""  # the whole answer so far
        self._position = 0  # up to where it is understood
        self._shown = 0  # up to where its plain text is passed on
        self._step: Callable[[], bool] = self._thought if in_thought else self._start
        self._final = False
        self._begin = 0  # of the call that is read
        self._value = 0  # where its JSON begins
        self._ahead = 0  # up to where it was looked for what follows the JSON
        self._marked = False
        self._depth = 0
        self._in_string = False
        self._seen_call = self._seen_text = False
        self._spaces: list[str] = []  # white space whose fate is open: text or a call may follow
        self._out: list[str] = []

    def feed(self, piece: str) -> str:
        """Add a piece of the answer; return the text that is certainly not part of a call."""
        text, self._text = self._text, ""  # one reference, so that += extends in place
        text += piece
        self._text = text
        return self._run()

    def finish(self) -> str:
        """End the answer; return the rest of its text."""
        self._final = True
        shown = self._run()
        return shown if self._seen_call else shown + "".join(self._spaces)

    def _run(self) -> str:
        while self._step():
            pass
        shown, self._out = "".join(self._out), []
        return shown

    # ------------------------------------------------------------------ steps: True if the next one can go on

    def _start(self) -> bool:
        """The beginning of the answer, or what follows a thought."""
        self._position = self._skip(_SPACE, self._position)
        self._pass_on(self._position)
        if self._waits_for(_THINK, *_MARKERS) or self._position == len(self._text):
            return False
        if self._text.startswith(_THINK, self._position):
            return self._go(self._thought, self._position + len(_THINK))
        self._begin = self._position
        marker = next((m for m in _MARKERS if self._text.startswith(m, self._position)), "")
        self._marked = marker == _MARKERS[0]
        return self._go(self._bare_value, self._position + len(marker))

    def _thought(self) -> bool:
        end = self._text.find(_END_OF_THOUGHT, self._position)
        if end < 0:
            return self._pass_on_all_but(_END_OF_THOUGHT)
        self._pass_on(end + len(_END_OF_THOUGHT))
        return self._go(self._start, end + len(_END_OF_THOUGHT))

    def _plain(self) -> bool:
        begin = self._text.find(OPEN, self._position)
        if begin < 0:
            return self._pass_on_all_but(OPEN)
        self._pass_on(begin)
        self._begin, self._marked = begin, False
        return self._go(self._opened, begin + len(OPEN))

    def _opened(self) -> bool:
        """After `<tool_call>`; openings in a row are one."""
        self._position = self._skip(_SPACE, self._position)
        if self._waits_for(OPEN) or (self._position == len(self._text) and not self._final):
            return False
        if self._text.startswith(OPEN, self._position):
            return self._go(self._opened, self._position + len(OPEN))
        if not self._begins_value():
            return self._go(self._malformed)
        return self._go(self._tagged)

    def _bare_value(self) -> bool:
        """After a marker, or at the beginning of an answer without one."""
        self._position = self._skip(_SPACE, self._position)
        if self._position == len(self._text) and not self._final:
            return False
        return self._go(self._bare) if self._begins_value() else self._go(self._plain, self._begin)

    def _tagged(self) -> bool:
        complete = self._read_value()
        if complete is None:
            return False
        if not complete:
            return self._go(self._malformed, self._value)
        return self._add_call()

    def _bare(self) -> bool:
        """A JSON value at the beginning; without a marker it is a call only if it is the whole answer."""
        complete = self._read_value()
        if complete is None:
            return False
        if not complete:
            return self._go(self._malformed, self._value) if self._marked else self._go(self._plain, self._begin)
        return self._add_call() if self._marked else self._look_ahead(self._alone)

    def _alone(self) -> bool:
        end = self._ahead = self._skip(_SPACE, self._ahead)
        if end < len(self._text):
            return self._go(self._plain)
        if not self._final:
            return False
        if self._found(self._text[self._value : self._position], False):
            return self._end_call(end)
        self._pass_on(end)  # an answer in JSON, in which nothing is searched
        return self._go(self._plain, end)

    def _closing(self) -> bool:
        """After the JSON of a call: its closing tag, if it has one."""
        after = self._ahead = self._skip(_SURPLUS, self._ahead)
        if self._text.startswith(CLOSE, after):
            return self._end_call(after + len(CLOSE))
        if CLOSE.startswith(self._text[after : after + len(CLOSE)]):  # the end, or the beginning of the tag
            return self._end_call(len(self._text)) if self._final else False
        return self._end_call(self._position)

    def _malformed(self) -> bool:
        """A call that is no JSON; it ends with the next tag."""
        tag = _TAG.search(self._text, self._position)
        if tag is None and not self._final:
            self._position = max(self._position, len(self._text) - len(CLOSE) + 1)
            return False
        self._found(self._text[self._value : tag.start() if tag else None].strip(), True)
        return self._end_call(len(self._text) if tag is None else tag.end() if tag.group() == CLOSE else tag.start())

    # ------------------------------------------------------------------ inside

    def _go(self, step: Callable[[], bool], position: int | None = None) -> bool:
        self._step = step
        if position is not None:
            self._position = position
        return True

    def _look_ahead(self, step: Callable[[], bool]) -> bool:
        self._ahead = self._position
        return self._go(step)

    def _skip(self, kind: re.Pattern[str], position: int) -> int:
        found = kind.match(self._text, position)
        assert found is not None
        return found.end()

    def _waits_for(self, *words: str) -> bool:
        """Whether the text ends inside what may become one of `words`."""
        rest = self._text[self._position : self._position + max(map(len, words))]
        return not self._final and any(rest != word and word.startswith(rest) for word in words)

    def _begins_value(self) -> bool:
        self._value, self._depth, self._in_string = self._position, 0, False
        return self._text.startswith(("{", "["), self._position)

    def _read_value(self) -> bool | None:
        """Read on to the end of a JSON object or list: whether it has one; None if more text has to come."""
        while True:
            kind = _IN_STRING if self._in_string else _OUTSIDE_STRING
            found = kind.search(self._text, self._position)
            if found is None or (self._in_string and found.group() == "\\" and found.end() == len(self._text)):
                self._position = len(self._text) if found is None else found.start()
                return False if self._final else None
            self._position = found.end()
            mark = found.group()
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._position += 1  # the character that the backslash escapes
            elif mark in "<\\":
                return False
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    return True

    def _add_call(self) -> bool:
        self._found(self._text[self._value : self._position], True)
        return self._look_ahead(self._closing)

    def _end_call(self, position: int) -> bool:
        self._seen_call, self._shown = True, position
        return self._go(self._plain, position)

    def _pass_on_all_but(self, word: str) -> bool:
        """Pass on the text, except an end that may be the beginning of `word`."""
        end = len(self._text)
        if not self._final:
            end -= next((n for n in range(len(word) - 1, 0, -1) if self._text.endswith(word[:n])), 0)
        self._position = max(self._position, end)
        self._pass_on(self._position)
        return False

    def _pass_on(self, end: int) -> None:
        """Pass on plain text up to `end`. White space beside calls counts only between texts."""
        chunk, self._shown = self._text[self._shown : end], end
        words = chunk.rstrip()
        if not words:
            self._spaces += [chunk] if chunk else []
            return
        if self._seen_call and not self._seen_text:
            self._out.append(words.lstrip())
        else:
            self._out += [*self._spaces, words]
        self._seen_text, self._spaces = True, [chunk[len(words) :]]
