"""Ask a model a question about some context."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.engine import SpecKV
from ..results import Generation
from .calls import prepare_chat
from .template import Message, has_template

INSTRUCTION = "Use the context to answer the question in one sentence."


def as_prompt(context: Sequence[str], query: str, instruction: str = INSTRUCTION) -> str:
    """What the user says: instruction, passages, question."""
    passages = "\n\n".join(context)
    return f"{instruction}\n\nContext:\n{passages}\n\nQuestion: {query}"


def answer(engine: SpecKV, context: Sequence[str], query: str, max_new_tokens: int = 48) -> Generation:
    """Greedy answer of the engine's target, through its chat template if it has one.

    Raises:
        InvalidInputError: the model has no tokenizer, or the prompt exceeds its window.
    """
    content = as_prompt(context, query)
    if has_template(engine.target.require_tokenizer()):
        call = prepare_chat(engine, [Message("user", content)])
        (stream,) = engine.submit([call.ids], max_new_tokens=max_new_tokens, **call.options)
    else:
        (stream,) = engine.submit(f"{content}\nAnswer:", max_new_tokens=max_new_tokens)
    return stream.result()
