"""From a request in OpenAI's layout to prompts and options for the engine, one job per answer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..chat.calls import ChatCall, prepare_chat, prepare_text
from ..chat.literal import encode_literal
from ..chat.response_format import wanted_schema
from ..engine.engine import SpecKV
from .errors import ServiceError
from .openai_messages import read_messages, read_tools
from .openai_schema import ChatRequest, CompletionRequest, GenerationRequest, refusal
from .penalties import TokenPenalties

_GREEDY = 1e-5  # temperatures below give the likeliest token; dividing by them could overflow
# What a variable of a chat template must not be called: these arguments would change how the template is used.
_TEMPLATE_ARGUMENTS = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        default_tokens: Most tokens of an answer whose request names no number.
        max_tokens: Most tokens of an answer that a request may name.
        max_answers: Most answers to one request: prompts times `n`.
        timeout: Most seconds that an answer takes, its wait in the queue included; None for no limit.
    """

    default_tokens: int = 1024
    max_tokens: int = 32_768
    max_answers: int = 32
    timeout: float | None = None


@dataclass(frozen=True)
class Job:
    """One answer to write.

    Attributes:
        prompt: Token ids of the prompt.
        options: Arguments of `SpecKV.submit`.
        call: How to parse the answer to a chat.
    """

    prompt: list[int]
    options: dict[str, Any]
    call: ChatCall | None = None


def chat_jobs(engine: SpecKV, asked: ChatRequest, limits: Limits) -> list[Job]:
    """Jobs of a chat, one per choice.

    Raises:
        ServiceError: a message, tool or setting cannot be used.
        InvalidInputError: as `prepare_chat`.
        MissingDependencyError: as `prepare_chat`.
    """
    choices = _choices(asked, 1, limits)
    messages, tools = read_messages(asked.messages), read_tools(asked.tools or [])
    if not isinstance(asked.tool_choice, str | dict | None):
        raise refusal("tool_choice", 'must be "auto", "none", "required" or {"type": "function", ...}')
    if not tools and asked.tool_choice not in (None, "auto", "none"):
        raise refusal("tool_choice", "there are no tools to choose; give tools, or leave it out")
    schema, show_schema = wanted_schema(asked.response_format)
    variables = asked.chat_template_kwargs or {}
    if taken := sorted(_TEMPLATE_ARGUMENTS & variables.keys()):
        raise refusal("chat_template_kwargs", f"{', '.join(taken)} cannot be set; give variables of the template only")

    def prepare() -> ChatCall:
        return prepare_chat(
            engine,
            messages,
            tools=tools,
            tool_choice=asked.tool_choice,
            parallel_tool_calls=asked.parallel_tool_calls,
            schema=schema,
            show_schema=show_schema,
            template_options=variables,
        )

    calls = [prepare()]
    has_state = "logits_processor" in calls[0].options  # a constraint follows one answer
    calls += [prepare() if has_state else calls[0] for _ in range(choices - 1)]
    return [
        Job(call.ids, _options(engine, asked, len(call.ids), choice, limits, call.options), call)
        for choice, call in enumerate(calls)
    ]


def completion_jobs(engine: SpecKV, asked: CompletionRequest, limits: Limits) -> list[Job]:
    """Jobs of a completion: for each prompt one per choice.

    Raises:
        ServiceError: the prompt or a setting cannot be used.
        InvalidInputError: a prompt is empty.
    """
    given = _prompts(asked.prompt)
    choices = _choices(asked, len(given), limits)
    prompts = [_as_ids(engine, prompt, bool(asked.formatted)) for prompt in given]
    return [
        Job(prompt, _options(engine, asked, len(prompt), choice, limits, {}))
        for prompt in prompts
        for choice in range(choices)
    ]


def _choices(asked: GenerationRequest, prompts: int, limits: Limits) -> int:
    choices = asked.n or 1
    if prompts * choices > limits.max_answers:
        raise refusal("n", f"one request gets at most {limits.max_answers} answers; send several requests")
    return choices


def _prompts(given: Any) -> list[str | list[int]]:
    """The prompts of a completion: a text, texts, token ids of one prompt, or of several."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(isinstance(item, str) for item in given) or all(_are_ids(item) for item in given):
            return list(given)
        if _are_ids(given):
            return [given]
    raise refusal("prompt", "must be a text, a list of texts, token ids, or a list of token ids; none may be empty")


def _are_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


def _as_ids(engine: SpecKV, prompt: str | list[int], formatted: bool) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    if formatted or not prompt:
        return prepare_text(engine, prompt).ids
    return encode_literal(engine.target.require_tokenizer(), prompt)


def _options(
    engine: SpecKV,
    asked: GenerationRequest,
    prompt_tokens: int,
    choice: int,
    limits: Limits,
    of_chat: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of `SpecKV.submit` for one choice."""
    field, most = asked.most_tokens
    if most is None:
        most = max(min(limits.default_tokens, engine.room(prompt_tokens)), 1)
    elif most > limits.max_tokens:
        raise refusal(field, f"an answer has at most {limits.max_tokens} tokens here; ask for no more")
    temperature = asked.temperature or 0.0
    options = {
        "max_new_tokens": most,
        "temperature": temperature if temperature >= _GREEDY else 0.0,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "seed": None if asked.seed is None else asked.seed + choice,
        "stop": asked.stop or (),
        "timeout": limits.timeout,
        **of_chat,
    }
    if penalties := _penalties(engine, asked):
        options["logits_processor"] = [penalties, *of_chat.get("logits_processor", ())]
    return options


def _penalties(engine: SpecKV, asked: GenerationRequest) -> TokenPenalties | None:
    frequency, presence = asked.frequency_penalty or 0.0, asked.presence_penalty or 0.0
    if not (frequency or presence or asked.logit_bias):
        return None
    return TokenPenalties(frequency, presence, {_token(engine, key): v for key, v in (asked.logit_bias or {}).items()})


def _token(engine: SpecKV, written: str) -> int:
    size = engine.target.vocab_size
    if not (written.isascii() and written.isdigit() and len(written) < 12 and int(written) < size):
        error: ServiceError = refusal("logit_bias", f"keys must be token ids of the model, 0 to {size - 1}")
        raise error
    return int(written)
