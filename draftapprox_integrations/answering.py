"""Ask a model a question about some context: plain greedy generation with transformers, no method of ours in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import InvalidInputError
from .models import LoadedModel

_INSTRUCTION = "Use the context to answer the question in one sentence."


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: The answer.
        prompt_tokens: Tokens of the whole prompt.
        completion_tokens: Tokens generated.
        seconds: Wall time of prefill and decoding.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


def answer(model: LoadedModel, context: Sequence[str], query: str, max_new_tokens: int = 48) -> Answer:
    """Greedy answer of `model`, through its chat template.

    Raises:
        InvalidInputError: the model has no tokenizer, or the prompt exceeds its window.
    """
    tokenizer = model.require_tokenizer()
    passages = "\n\n".join(context)
    content = f"{_INSTRUCTION}\n\nContext:\n{passages}\n\nQuestion: {query}"
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    else:
        inputs = tokenizer(f"{content}\nAnswer:", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    if length + max_new_tokens > model.context_window:
        raise InvalidInputError(
            f"the prompt has {length} tokens, {model.name} reads at most {model.context_window} with "
            f"{max_new_tokens} to write. Compress the context or retrieve less."
        )
    begun = time.perf_counter()
    with model.lock, torch.inference_mode():
        output = model.model.generate(  # type: ignore[operator]
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    seconds = time.perf_counter() - begun
    new = output[0, length:]
    return Answer(str(tokenizer.decode(new, skip_special_tokens=True)).strip(), length, len(new), seconds)
