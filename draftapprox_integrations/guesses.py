"""What a draft wrote after it had read some passages with a question, left for the LLM that answers from them.

In a RAG chain the same draft would read twice: once to compress the passages, once to guess the answer for SpecKV. A
retrieval part that was told to (`lookahead_tokens`) leaves its guess with the draft model; the engine takes it when the
prompt is the one it belongs to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_REMEMBERED = 64
# Characters that may follow the question: "\nAnswer:", "assistant\n". More may be another question.
_TAIL = 48


@dataclass(frozen=True)
class Guess:
    """One guess.

    Attributes:
        query: The question.
        texts: What was kept of the passages, without surrounding white space.
        ids: The draft's token ids, end-of-sequence included.
        text: The same as text, without special tokens.
    """

    query: str
    texts: tuple[str, ...]
    ids: tuple[int, ...]
    text: str


class Guesses:
    """The latest guesses of one draft model. Safe to use from many threads."""

    def __init__(self) -> None:
        self._held: deque[Guess] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._held)

    def leave(self, query: str, texts: Sequence[str], ids: Sequence[int], text: str) -> None:
        """Keep a guess for the prompt that is to come."""
        kept = tuple(stripped for given in texts if (stripped := given.strip()))
        with self._lock:
            self._held.append(Guess(query.strip(), kept, tuple(ids), text))

    def find(self, prompt: str) -> Guess | None:
        """The newest guess that belongs to a prompt: it ends with the question, and all the passages are in it.

        Args:
            prompt: The prompt's text, without special tokens.
        """
        with self._lock:
            held = list(self._held)
        for guess in reversed(held):
            place = prompt.rfind(guess.query)
            if place < 0 or len(prompt) - place - len(guess.query) > _TAIL:
                continue
            before = prompt[:place]
            if guess.texts and all(text in before for text in guess.texts):
                return guess
        return None
