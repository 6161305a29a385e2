"""Keep untrusted text literal: what a message says never becomes a control token of the prompt.

A marker character breaks each control token that an untrusted text spells. The chat template renders the marked
texts, the prompt is tokenized, and the markers' tokens are removed. Text without control tokens is not marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

Value = TypeVar("Value")
Marking = Literal["exact", "careful", "visible"]

# Printable letters without upper case, so that neither `repr`, JSON nor a template's filters change them.
_MARKERS = [chr(code) for code in range(0x12000, 0x12040)]
_TAG = re.compile(r"[<\[]\S*[A-Za-z_]\S*[>\]]")
_THOUGHTS = re.compile(r"(\s*(?:<think>)?)(.*?)(</think>)", re.DOTALL)


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids and, where the tokenizer reports them, character spans in the rendered text.

    Attributes:
        ids: Token ids [tokens].
        starts: Start of each token in the text, or None with a slow tokenizer.
        controls: Number of control tokens.
    """

    ids: list[int]
    starts: list[int] | None
    controls: int


class TextGuard:
    """Marks the control tokens in untrusted values and encodes what was rendered from them.

    Args:
        tokenizer: The target's tokenizer.
        untrusted: Strings, or lists, mappings and dataclasses of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, untrusted: Any):
        self._tokenizer = tokenizer
        self._controls = _Controls.of(tokenizer)
        texts = list(_strings(untrusted))
        self._marker = next((mark for mark in _MARKERS if not any(mark in text for text in texts)), _MARKERS[0])
        self.is_doubtful = any(self._controls.is_doubtful(text) for text in texts)

    def mark(self, value: Value, marking: Marking = "exact") -> Value:
        """Return `value` with its control tokens broken.

        Args:
            value: A string, or a list, mapping or dataclass with strings.
            marking: "exact": the control tokens in the texts. "careful": also what becomes a control token in upper or
                lower case or together with its surroundings. "visible": as "careful", with a space instead of a marker.
        """
        marker = " " if marking == "visible" else self._marker
        marked: Value = _map_strings(value, self._controls, marker, marking != "exact")
        return marked

    def encode(self, text: str, *, add_special_tokens: bool = False) -> EncodedPrompt | None:
        """Tokenize a text rendered from marked values.

        Returns:
            The tokens without the markers', or None if the tokenizer merges a marker with other text.
        """
        marked = self._marker in text
        if not self._tokenizer.is_fast:
            if marked:
                return None
            ids = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return EncodedPrompt(ids, None, self._count(ids))
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if marked:
            kept = []
            for index, (start, end) in enumerate(spans):
                shown = text[start:end]
                if self._marker not in shown:
                    kept.append(index)
                elif shown.strip(self._marker):
                    return None
            ids, spans = [ids[index] for index in kept], [spans[index] for index in kept]
        return EncodedPrompt(ids, [start for start, _ in spans], self._count(ids))

    def _count(self, ids: Sequence[int]) -> int:
        return sum(token in self._controls.ids for token in ids)


def encode_literal(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text prompt of which nothing becomes a control token, with those that a model expects."""
    guard = TextGuard(tokenizer, text)
    encoded = guard.encode(guard.mark(text), add_special_tokens=True)
    encoded = encoded or guard.encode(guard.mark(text, "visible"), add_special_tokens=True)
    assert encoded is not None
    return encoded.ids


@dataclass(frozen=True)
class _Controls:
    """A tokenizer's control tokens: the special ones, and tags that its chat template writes."""

    ids: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Controls:
        template = str(tokenizer.chat_template or "")
        found = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or (_TAG.fullmatch(token.content) and token.content in template)
        }
        for text in tokenizer.all_special_tokens:
            index = tokenizer.convert_tokens_to_ids(text)
            if isinstance(index, int):
                found.setdefault(text, index)
        texts = tuple(sorted((text for text in found if len(text) > 1), key=len, reverse=True))
        return cls(frozenset(found.values()), texts)

    def is_doubtful(self, text: str) -> bool:
        """Return whether "careful" marking changes more of `text` than "exact" does."""
        return self.mark(text, "\0", True) != self.mark(text, "\0", False)

    def mark(self, text: str, marker: str, careful: bool) -> str:
        """Insert `marker` after the first character of each control token in `text`."""
        if not self.texts or not text:
            return text
        patterns = _patterns(self.texts)
        pattern = patterns.any_case if careful else patterns.exact
        if careful:
            text = _mark_ends(text, marker, patterns)
        return pattern.sub(lambda found: found[0] + marker, text) if pattern.search(text) else text


@dataclass(frozen=True)
class _Patterns:
    """Compiled forms of a tokenizer's control tokens; the parts are proper ones, in lower case."""

    exact: re.Pattern[str]
    any_case: re.Pattern[str]
    beginnings: frozenset[str]
    middles: frozenset[str]
    ends: frozenset[str]
    longest: int


@lru_cache(maxsize=16)
def _patterns(texts: tuple[str, ...]) -> _Patterns:
    followed = f"(?=(?:{'|'.join(map(re.escape, texts))}))"
    firsts = "".join(map(re.escape, sorted({text[0] for text in texts})))
    lowered = {text.lower() for text in texts}
    return _Patterns(
        re.compile(f"{followed}[{firsts}]"),
        re.compile(f"{followed}[{firsts}]", re.IGNORECASE),
        frozenset(text[:cut] for text in lowered for cut in range(1, len(text))),
        frozenset(text[a:b] for text in lowered for a in range(1, len(text)) for b in range(a + 1, len(text))),
        frozenset(text[cut:] for text in lowered for cut in range(1, len(text))),
        max(map(len, texts)),
    )


def _mark_ends(text: str, marker: str, patterns: _Patterns) -> str:
    """Insert `marker` where the beginning or end of `text` may complete a control token around it."""
    inner = text.strip()
    lowered = inner.lower()
    lengths = range(1, min(patterns.longest, len(lowered)) + 1)
    starts = lowered in patterns.middles or any(lowered[:length] in patterns.ends for length in lengths)
    ends = any(lowered[-length:] in patterns.beginnings for length in lengths)
    if not inner or not (starts or ends):
        return text
    begin = text.find(inner)
    return text[:begin] + marker * starts + inner + marker * ends + text[begin + len(inner) :]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for known in fields(value):
            yield from _strings(getattr(value, known.name))


def _map_strings(value: Any, controls: _Controls, marker: str, careful: bool) -> Any:
    if isinstance(value, str):
        return controls.mark(value, marker, careful)
    if isinstance(value, Mapping):
        return {
            _map_strings(key, controls, marker, careful): _map_strings(item, controls, marker, careful)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_strings(item, controls, marker, careful) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for known in fields(value):
            if known.name == "role":
                continue
            inner = getattr(value, known.name)
            thoughts = known.name == "content" and getattr(value, "role", "") == "assistant"
            found = _THOUGHTS.match(inner) if thoughts else None
            if found:  # templates split the model's own thoughts off at their tags
                rest = controls.mark(inner[found.end() :], marker, careful)
                changed[known.name] = found[1] + controls.mark(found[2], marker, careful) + found[3] + rest
            else:
                changed[known.name] = _map_strings(inner, controls, marker, careful)
        return replace(value, **changed)
    return value
