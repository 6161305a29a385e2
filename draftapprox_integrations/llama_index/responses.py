"""What the engine wrote, as LlamaIndex's responses."""

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
from ..chat.tools import Answer, ToolFilter
from ..results import Generation


def _raw(written: Generation) -> dict[str, Any]:
    usage = written.usage
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "kept_kv": usage.kept_kv,
            "kept_kv_bytes": usage.kept_kv_bytes,
            "kept_prompt_tokens": usage.kept_prompt_tokens,
        },
        "finish_reason": written.finish_reason,
        "timings": written.timings,
    }


def completion(written: Generation, delta: str | None = None) -> CompletionResponse:
    """The whole answer to a completion, or its last piece."""
    raw = _raw(written)
    return CompletionResponse(text=written.text, delta=delta, raw=raw, additional_kwargs=dict(raw["usage"]))


def part_response(text: str, delta: str) -> ChatResponse:
    """A piece of a growing message."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)


def chat_response(written: Generation, call: ChatCall, delta: ToolFilter | None = None) -> ChatResponse:
    """The whole message with its tool calls; as a stream's last piece, with what `delta` held back."""
    answer = call.read(written.text)
    raw = _raw(written)
    message = ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[
            *([TextBlock(text=answer.text)] if answer.text or not answer.calls else []),
            *(ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=c.arguments) for c in answer.calls),
        ],
    )
    shown = delta.rest(answer) if delta else ""
    return ChatResponse(message=message, delta=shown, raw=raw, additional_kwargs=dict(raw["usage"]) | _failures(answer))


def _failures(answer: Answer) -> dict[str, Any]:
    return {"invalid_tool_calls": [asdict(bad) for bad in answer.invalid]} if answer.invalid else {}
