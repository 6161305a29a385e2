"""Convert the engine's results to LlamaIndex's responses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from ..chat.calls import ChatCall
from ..chat.tools import ParsedAnswer, ToolCallFilter
from ..results import Generation


def _raw(written: Generation) -> dict[str, Any]:
    return {
        "usage": written.usage.to_dict(),
        "finish_reason": written.finish_reason,
        "timings": written.timings,
    }


def completion(written: Generation, delta: str | None = None) -> CompletionResponse:
    """Return a completion's response; with `delta`, the last one of a stream."""
    raw = _raw(written)
    return CompletionResponse(text=written.text, delta=delta, raw=raw, additional_kwargs=dict(raw["usage"]))


def part_response(text: str, delta: str) -> ChatResponse:
    """Return a stream's response: the text so far and the new piece."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)


def chat_response(written: Generation, call: ChatCall, withheld: ToolCallFilter | None = None) -> ChatResponse:
    """Return the complete message with its tool calls; with `withheld`, the last response of a stream."""
    parsed = call.parse(written.text)
    raw = _raw(written)
    message = ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[
            *([TextBlock(text=parsed.text)] if parsed.text or not parsed.calls else []),
            *(ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=c.arguments) for c in parsed.calls),
        ],
    )
    shown = withheld.rest(parsed) if withheld else ""
    return ChatResponse(message=message, delta=shown, raw=raw, additional_kwargs=dict(raw["usage"]) | _failures(parsed))


def _failures(parsed: ParsedAnswer) -> dict[str, Any]:
    return {"invalid_tool_calls": [asdict(bad) for bad in parsed.invalid]} if parsed.invalid else {}
