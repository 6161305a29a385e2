"""Answers in OpenAI's layout, whole and in chunks."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..chat.calls import ChatCall
from ..chat.tools import ParsedAnswer, ToolCall, ToolCallFilter
from ..results import Generation

Body = dict[str, Any]


class AnswerLayout(ABC):
    """How the answers to one request are written down.

    Args:
        name: The model's name.
        choices: Answers per prompt.
        with_usage: Whether a stream ends with token counts.
    """

    prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, name: str, choices: int, with_usage: bool):
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        self._choices, self._with_usage = choices, with_usage

    def whole(self, written: Sequence[Generation]) -> Body:
        """The body with all answers."""
        choices = [self._choice(index, generation) for index, generation in enumerate(written)]
        return self._head | {"object": self.whole_kind, "choices": choices, "usage": self._usage(written)}

    @abstractmethod
    def first_chunks(self) -> list[Body]:
        """The chunks before any text."""

    @abstractmethod
    def text_chunk(self, index: int, piece: str) -> Body | None:
        """The chunk of a piece of text; None if nothing of it can be shown yet."""

    @abstractmethod
    def last_chunks(self, index: int, generation: Generation) -> list[Body]:
        """The chunks that end a choice."""

    def usage_chunks(self, written: Sequence[Generation]) -> list[Body]:
        """The chunk with token counts, if it was asked for."""
        return [self._chunk([]) | {"usage": self._usage(written)}] if self._with_usage else []

    @abstractmethod
    def _choice(self, index: int, generation: Generation) -> Body: ...

    def _chunk(self, choices: list[Body]) -> Body:
        chunk = self._head | {"object": self.chunk_kind, "choices": choices}
        return chunk | {"usage": None} if self._with_usage else chunk

    def _usage(self, written: Sequence[Generation]) -> dict[str, int | None]:
        """Token counts; each prompt counts once, whatever the number of its answers."""
        of_prompts = [generation.usage.to_dict() for generation in written[:: self._choices]]
        usage: dict[str, int | None] = {}
        for name in of_prompts[0]:
            known = [count for counts in of_prompts if (count := counts[name]) is not None]
            usage[name] = sum(known) if known else None
        completion = sum(generation.usage.completion_tokens for generation in written)
        return usage | {"completion_tokens": completion, "total_tokens": (usage["prompt_tokens"] or 0) + completion}


class TextLayout(AnswerLayout):
    """Answers of `/v1/completions`."""

    prefix, whole_kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def first_chunks(self) -> list[Body]:
        """None."""
        return []

    def text_chunk(self, index: int, piece: str) -> Body:
        """The chunk of a piece of text."""
        return self._chunk([_text_choice(index, piece, None)])

    def last_chunks(self, index: int, generation: Generation) -> list[Body]:
        """The chunk with the reason of the end."""
        return [self._chunk([_text_choice(index, "", generation.finish_reason)])]

    def _choice(self, index: int, generation: Generation) -> Body:
        return _text_choice(index, generation.text, generation.finish_reason)


class ChatLayout(AnswerLayout):
    """Answers of `/v1/chat/completions`. What a model wrote as a tool call and is none becomes text.

    Args:
        name, with_usage: As in the base class.
        calls: How to parse each choice.
    """

    prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, name: str, calls: Sequence[ChatCall], with_usage: bool):
        super().__init__(name, len(calls), with_usage)
        self._calls = calls
        self._filters: list[ToolCallFilter | None] = [call.stream_filter() for call in calls]

    def first_chunks(self) -> list[Body]:
        """One per choice, with the role."""
        role = {"role": "assistant", "content": "", "refusal": None}
        return [self._delta(index, role) for index in range(len(self._calls))]

    def text_chunk(self, index: int, piece: str) -> Body | None:
        """The chunk of a piece of text; None if it may belong to a tool call."""
        withheld = self._filters[index]
        shown = withheld.feed(piece) if withheld else piece
        return self._delta(index, {"content": shown}) if shown else None

    def last_chunks(self, index: int, generation: Generation) -> list[Body]:
        """The rest of the text, each tool call, the reason of the end."""
        parsed, withheld = self._parse(index, generation), self._filters[index]
        rest = withheld.rest(parsed) if withheld else ""
        chunks = [self._delta(index, {"content": rest})] if rest else []
        chunks += [
            self._delta(index, {"tool_calls": [{"index": place, **_call(call)}]})
            for place, call in enumerate(parsed.calls)
        ]
        return [*chunks, self._delta(index, {}, _finish_reason(parsed, generation))]

    def _choice(self, index: int, generation: Generation) -> Body:
        parsed = self._parse(index, generation)
        message: Body = {"role": "assistant", "content": parsed.text or None, "refusal": None}
        if parsed.calls:
            message["tool_calls"] = [_call(call) for call in parsed.calls]
        else:
            message["content"] = parsed.text
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": _finish_reason(parsed, generation),
        }

    def _parse(self, index: int, generation: Generation) -> ParsedAnswer:
        parsed = self._calls[index].parse(generation.text)
        texts = [parsed.text, *(bad.text for bad in parsed.invalid)]
        return replace(parsed, text="\n".join(filter(None, texts)) if parsed.invalid else parsed.text)

    def _delta(self, index: int, delta: Body, finish_reason: str | None = None) -> Body:
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])


def _text_choice(index: int, text: str, finish_reason: str | None) -> Body:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _finish_reason(parsed: ParsedAnswer, generation: Generation) -> str:
    return "tool_calls" if parsed.calls and generation.finish_reason == "stop" else generation.finish_reason


def _call(call: ToolCall) -> Body:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    try:
        arguments.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which the model spelled with an escape
        arguments = json.dumps(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
