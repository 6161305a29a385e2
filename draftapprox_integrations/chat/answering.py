"""Ask a model a question about retrieved passages."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.engine import SpecKV
from ..results import Generation
from .calls import prepare_chat
from .literal import encode_literal
from .template import Message, has_chat_template

INSTRUCTION = "Use the context to answer the question in one sentence."


def rag_prompt(passages: Sequence[str], query: str, instruction: str = INSTRUCTION) -> str:
    """Return a user message: the instruction, the passages, the question."""
    context = "\n\n".join(passages)
    return f"{instruction}\n\nContext:\n{context}\n\nQuestion: {query}"


def answer(engine: SpecKV, passages: Sequence[str], query: str, max_new_tokens: int = 48) -> Generation:
    """Generate a greedy answer with the engine's target, through its chat template if it has one.

    Raises:
        InvalidInputError: the model has no tokenizer, or the prompt exceeds its window.
    """
    content = rag_prompt(passages, query)
    tokenizer = engine.target.require_tokenizer()
    if has_chat_template(tokenizer):
        call = prepare_chat(engine, [Message("user", content)])
        (written,) = engine.generate([call.ids], max_new_tokens=max_new_tokens, **call.options)
    else:
        prompt = encode_literal(tokenizer, f"{content}\nAnswer:")
        (written,) = engine.generate([prompt], max_new_tokens=max_new_tokens)
    return written
