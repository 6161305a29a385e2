"""Request bodies in OpenAI's layout: fields that are honoured, ignored, and refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from .errors import ServiceError

# Fields that cannot change the answer of a local model.
IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction",
    }
)  # fmt: skip

_NO_LOGPROBS = "the service computes no log probabilities; leave it out"
_TEXT_ONLY = "the model writes text only; leave it out"
# Fields that would change the answer and cannot be honoured, and what to do instead.
REFUSED = {
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "functions": "use tools, which took their place",
    "function_call": "use tool_choice, which took its place",
    "modalities": _TEXT_ONLY,
    "audio": _TEXT_ONLY,
    "web_search_options": "the model has no web search; offer it one as a tool",
    "reasoning_effort": 'set what the chat template knows: chat_template_kwargs, as {"enable_thinking": false}',
    "verbosity": "ask for it in a message",
    "echo": "put the prompt before the answer yourself",
    "suffix": "the model writes after a prompt only; leave it out",
    "best_of": "every answer is returned; use n",
}
# Values with which a refused field asks for nothing.
_NEUTRAL: dict[str, Any] = {"top_logprobs": 0, "modalities": ["text"], "best_of": 1}

Text = Annotated[str, Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1)]


class StreamOptions(BaseModel):
    """Settings of a stream.

    Attributes:
        include_usage: Whether the last chunk counts the tokens.
    """

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """The fields that both endpoints have. `null` is as good as leaving a field out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None  # not OpenAI's
    n: Count | None = None
    stop: Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer's length, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # not OpenAI's

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """As in the base class; `max_completion_tokens` is the newer name and goes first."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().most_tokens


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`.

    Attributes:
        formatted: Whether texts are in the model's own format, so that control tokens in them count. Not OpenAI's.
    """

    prompt: Any
    formatted: bool | None = None


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


def refusal(param: str, message: str, code: str = "invalid_value") -> ServiceError:
    """The error of a request whose field `param` is at fault; the message says what to do."""
    return ServiceError(400, f"{param}: {message}", param=param, code=code)


def read_request(layout: type[AnyRequest], body: bytes) -> AnyRequest:
    """Parse and check a body.

    Raises:
        ServiceError: it is no JSON object, a field has a wrong value, or one is unknown or cannot be honoured.
    """
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ServiceError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise ServiceError(400, "the body must be a JSON object", code="invalid_json")
    for name, value in given.items():
        if name in REFUSED:
            if not _asks_for_nothing(name, value):
                raise refusal(name, REFUSED[name], "unsupported_parameter")
        elif name not in layout.model_fields and name not in IGNORED:
            known = ", ".join(sorted(layout.model_fields))
            raise refusal(name[:80], f"there is no such field; leave it out. There are: {known}", "unknown_parameter")
    try:
        return layout.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise refusal(_path(first["loc"]), first["msg"]) from error


def _asks_for_nothing(name: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}, ""):
        return True
    neutral = _NEUTRAL.get(name)
    return type(value) is type(neutral) and bool(value == neutral)


def _path(parts: Iterable[int | str]) -> str:
    """A place in a body as OpenAI writes it: "stop[0]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
