"""Where a request of OpenAI's API holds text that may be shortened, and how to write the shorter text back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..frameworks.tool_results import is_json, query_for
from .contexts import LONG_CHARACTERS, paragraphs, read_user_text

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?')
_WORD_CHARACTERS = 40  # mean length of what stands between white space beyond which ASCII is no prose, such as base64
_RENDERED = re.compile(r"<\|\w|\[INST\]|<start_of_turn>")  # a chat template's control tokens
_DOCUMENT_KEYS = ("text", "content", "contents", "snippet", "data")


@dataclass(frozen=True)
class Piece:
    """A part of a text that may be shortened.

    Attributes:
        start, end: Its characters in the text.
        text: What they say: themselves, or the value of a JSON string literal.
        literal: Whether they are such a literal.
    """

    start: int
    end: int
    text: str
    literal: bool = False


@dataclass(frozen=True)
class Slot:
    """A string of the request that holds pieces.

    Attributes:
        holder, key: Where the string is: holder[key].
        pieces: Its pieces, ascending and disjoint.
    """

    holder: Any
    key: str | int
    pieces: list[Piece]

    def write(self, texts: Sequence[str]) -> None:
        """Put these texts in place of the pieces; between two that are left, the blank space of the original stays."""
        original = self.holder[self.key]
        written, position, run = [], 0, False
        for piece, text in zip(self.pieces, texts, strict=True):
            gap = original[position : piece.start]
            starts_run = position == 0 or bool(gap.strip())
            if starts_run or (run and text):
                written.append(gap)
            run = bool(text) or (run and not starts_run)
            written.append(json.dumps(text, ensure_ascii=original.isascii()) if piece.literal else text)
            position = piece.end
        self.holder[self.key] = "".join([*written, original[position:]])


@dataclass(frozen=True)
class Unit:
    """Text that is shortened together: the slots of one message.

    Attributes:
        query: What it is read with.
        slots: Where it is.
        content: The message's list of content parts; those of which nothing is left are removed. None for a text.
    """

    query: str
    slots: list[Slot]
    content: list[Any] | None = None

    @property
    def texts(self) -> list[str]:
        """The pieces' texts."""
        return [piece.text for slot in self.slots for piece in slot.pieces]

    def write(self, texts: Sequence[str]) -> None:
        """Put these texts in place of the pieces, and remove content parts of which nothing is left."""
        rest = iter(texts)
        for slot in self.slots:
            slot.write([next(rest) for _ in slot.pieces])
        if self.content is not None:
            empty = [slot.holder for slot in self.slots if not slot.holder[slot.key].strip()]
            left = [part for part in self.content if not any(part is one for one in empty)]
            self.content[:] = left or self.content[:1]  # no server takes an empty list


def chat_units(body: dict[str, Any], *, unmarked: bool = False) -> list[Unit]:
    """Find what may be shortened in the body of a chat completion; nothing where no question is found.

    User messages: marked context. Results of tools: their text; of JSON the long strings. Document parts, and the
    documents beside the messages that vLLM takes: their text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    found: list[tuple[int, list[Slot], list[Any] | None]] = []
    questions: list[tuple[int, str]] = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "tool", "function"):
            continue
        slots: list[Slot] = []
        asked: list[str] = []
        for holder, key in _strings(message):
            if role == "user":
                read = read_user_text(holder[key], unmarked=unmarked)
                pieces = _paragraph_pieces(holder[key], read.contexts)
                asked.append(read.question)
            else:
                pieces = _result_pieces(holder[key])
            slots += [Slot(holder, key, pieces)] if pieces else []
        slots += [slot for part in _parts(message) if part.get("type") == "document" for slot in _document_slots(part)]
        question = "\n".join(filter(None, asked))
        if question:
            questions.append((index, question))
        content = message.get("content")
        found += [(index, slots, content if isinstance(content, list) else None)] if slots else []
    if not questions:
        return []
    units = [Unit(query_for(index, questions), slots, content) for index, slots, content in found]
    documents = body.get("documents")
    if isinstance(documents, list) and (slots := [slot for one in documents for slot in _document_slots(one)]):
        units.append(Unit(questions[-1][1], slots))
    return units


def completion_units(body: dict[str, Any], *, unmarked: bool = False) -> list[Unit]:
    """Find what may be shortened in the body of a completion: marked context of each prompt that is a text.

    A prompt with control tokens of a chat template is left alone: its roles cannot be told.
    """
    prompt = body.get("prompt")
    holder: Any = prompt if isinstance(prompt, list) else body
    keys: list[Any] = list(range(len(prompt))) if isinstance(prompt, list) else ["prompt"]
    units = []
    for key in keys:
        text = holder.get(key) if isinstance(holder, dict) else holder[key]
        if isinstance(text, str) and not _RENDERED.search(text):
            read = read_user_text(text, unmarked=unmarked)
            pieces = _paragraph_pieces(text, read.contexts)
            if pieces and read.question:
                units.append(Unit(read.question, [Slot(holder, key, pieces)]))
    return units


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _strings(message: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the texts of a message are."""
    if isinstance(message.get("content"), str):
        yield message, "content"
    for part in _parts(message):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part, "text"


def _paragraph_pieces(text: str, contexts: Sequence[tuple[int, int]]) -> list[Piece]:
    spans = [span for start, end in contexts for span in paragraphs(text, start, end)]
    return [Piece(start, end, text[start:end]) for start, end in spans]


def _result_pieces(text: str) -> list[Piece]:
    """The whole result; of JSON its long strings, keys and what is no prose left alone."""
    if not text.strip():
        return []
    if not is_json(text):
        return [Piece(0, len(text), text)]
    pieces = []
    for found in _STRING.finditer(text):
        if found["key"] is None and found.end() - found.start() > LONG_CHARACTERS:
            value = _loaded(found[0])
            if value is not None and _is_prose(value):
                pieces.append(Piece(*found.span(), value, literal=True))
    return pieces


def _loaded(literal: str) -> str | None:
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


def _is_prose(value: str) -> bool:
    if is_json(value):
        return False
    return not value.isascii() or len(value) < _WORD_CHARACTERS * (len(value.split()))


def _document_slots(part: Any) -> Iterator[Slot]:
    """The texts of a document: of its own, or of its source or its data, unless they are in another encoding."""
    pending = [part]
    while pending:
        holder = pending.pop()
        if not isinstance(holder, dict) or holder.get("type") in ("base64", "url", "file"):
            continue
        for key in _DOCUMENT_KEYS:
            text = holder.get(key)
            if isinstance(text, str) and len(text) > LONG_CHARACTERS and _is_prose(text):
                yield Slot(holder, key, [Piece(0, len(text), text)])
        pending += [holder.get(key) for key in ("source", "document", "data")]
