"""Drafts that only write text: a model behind an endpoint, or an LLM object of a framework, for SpecKV's lookahead.

Their weights are elsewhere and their attention cannot be read: SpecPC needs a draft that is loaded here. A draft that
fails or is late costs the lookahead, never the answer: SpecKV then scores with the prompt's end, as SnapKV does.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ..errors import InvalidInputError, MissingDependencyError
from ..models.loading import LoadedModel, ModelSpec, load_model
from ..models.references import as_reference, model_reference

logger = logging.getLogger(__name__)

KEY_VARIABLE = "DRAFTAPPROX_DRAFT_KEY"
_POLL_SECONDS = 0.02  # between looks at whether the caller has left


class Invokable(Protocol):
    """An LLM or chat model of LangChain."""

    def invoke(self, prompt: Any, /) -> Any:
        """A text, or a message with one."""


class Completer(Protocol):
    """An LLM of LlamaIndex."""

    def complete(self, prompt: str, /) -> Any:
        """A completion with a text."""


class TextDraft:
    """A draft that writes text.

        kv = SpecKV("Qwen/Qwen2.5-14B-Instruct", TextDraft(lambda prompt, tokens: my_client(prompt, tokens)))

    Args:
        write: Called as write(prompt, most tokens), in a thread of its own for each prompt; returns what follows.
        name: Name for people.
        source: What makes it again, such as an address; None for an object.
        timeout: Seconds to wait for it, > 0.
        formatted: Whether prompts keep their control tokens, as an endpoint for plain completions expects. False for
            chat models, which put the text into a template of their own.

    Raises:
        InvalidInputError: `timeout` is not positive.
    """

    def __init__(
        self,
        write: Callable[[str, int], str],
        *,
        name: str = "text draft",
        source: str | None = None,
        timeout: float = 10.0,
        formatted: bool = True,
    ):
        if not timeout > 0:
            raise InvalidInputError(f"timeout must be seconds, more than 0; got {timeout!r}")
        self.write, self.name, self.source = write, name, source
        self.timeout, self.formatted = timeout, formatted

    def __repr__(self) -> str:
        return f"TextDraft({self.name!r})"


# What drafts for SpecKV: "self" is the target itself, None no model at all.
DraftSpec: TypeAlias = "ModelSpec | TextDraft | Invokable | Completer | Literal['self'] | None"


class TextLookahead:
    """Lookahead from a `TextDraft`, in the target's vocabulary.

    Raises:
        InvalidInputError: the target has no tokenizer.
    """

    same_vocabulary = False

    def __init__(self, target: LoadedModel, draft: TextDraft):
        self._tokenizer, self._draft = target.require_tokenizer(), draft

    def draft(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: int, is_cancelled: Callable[[], bool] = bool
    ) -> list[Tensor]:
        """Ask for the continuation of each prompt, all at a time.

        Args:
            input_ids, attention_mask: LongTensor [batch, tokens], padded on the left.
            tokens: Most tokens of a lookahead, in the target's vocabulary.
            is_cancelled: Polled while it waits; True ends the waiting.

        Returns:
            Per row a LongTensor [at most `tokens`]; empty where the draft failed or was late.
        """
        prompts = [self._prompt(row[keep.bool()]) for row, keep in zip(input_ids, attention_mask, strict=True)]
        found = []
        for text in self._write_all(prompts, tokens, is_cancelled):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"][:tokens] if text else []
            found.append(torch.tensor(ids, dtype=torch.long))
        return found

    def _prompt(self, ids: Tensor) -> str:
        text = str(self._tokenizer.decode(ids, skip_special_tokens=not self._draft.formatted))
        bos = self._tokenizer.bos_token
        return text.removeprefix(bos) if bos else text  # the other side adds its own

    def _write_all(self, prompts: Sequence[str], tokens: int, is_cancelled: Callable[[], bool]) -> list[str]:
        texts, draft = [""] * len(prompts), self._draft

        def write(index: int) -> None:
            try:
                texts[index] = str(draft.write(prompts[index], tokens))
            except Exception as error:  # whatever it is, the answer can be written without
                logger.warning("%s wrote no lookahead: %s: %s", draft.name, type(error).__name__, error)

        # Daemons: a draft that hangs must not keep the process alive.
        threads = [threading.Thread(target=write, args=(index,), daemon=True) for index in range(len(prompts))]
        end = time.monotonic() + draft.timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not is_cancelled():
                if time.monotonic() > end:
                    logger.warning("%s wrote no lookahead within %g s", draft.name, draft.timeout)
                    break
                thread.join(_POLL_SECONDS)
        return list(texts)  # what comes later is not looked at


def as_draft(spec: ModelSpec | TextDraft | Invokable | Completer, **loading: Any) -> LoadedModel | TextDraft:
    """A draft from what users give.

    Args:
        spec: A model spec; "http://host:port/v1#model", an endpoint for completions like OpenAI's; an LLM or chat model
            of LangChain (with `invoke`) or LlamaIndex (with `complete`); or a `TextDraft`.
        **loading: Arguments of `load_model`.

    Raises:
        InvalidInputError: an address without a model.
        MissingDependencyError: httpx is not installed.
        ModelLoadError: as `load_model`.
    """
    if isinstance(spec, TextDraft):
        return spec
    if isinstance(spec, str):
        return _endpoint(spec) if is_address(spec) else load_model(spec, **loading)
    call: Any = getattr(spec, "invoke", None) or getattr(spec, "complete", None)
    if call is None:
        return load_model(cast("ModelSpec", spec), **loading)
    return TextDraft(lambda prompt, _: _text_of(call(prompt)), name=type(spec).__name__, formatted=False)


def is_address(spec: Any) -> bool:
    """Whether a draft is named by an address."""
    return isinstance(spec, str) and spec.startswith(("http://", "https://"))


def is_text_draft(spec: Any) -> bool:
    """Whether `as_draft` makes a `TextDraft` of it."""
    return isinstance(spec, TextDraft) or is_address(spec) or hasattr(spec, "invoke") or hasattr(spec, "complete")


def draft_reference(spec: Any) -> str:
    """The reference of a draft: a name or address that makes it again, or a placeholder for an object."""
    if isinstance(spec, TextDraft):
        return spec.source if spec.source is not None else as_reference(spec)
    return as_reference(spec) if is_text_draft(spec) else model_reference(spec)


def _text_of(answer: Any) -> str:
    """The text of what a framework's model returns: a text, a message, or a completion."""
    if isinstance(answer, str):
        return answer
    text = getattr(answer, "text", None)
    return str(text() if callable(text) and not isinstance(text, str) else text)


@cache  # so that parts that name the same endpoint share an engine
def _endpoint(address: str) -> TextDraft:
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError('a draft behind an endpoint needs httpx: pip install "httpx"') from error
    parts = urlsplit(address)
    if not parts.hostname or not parts.fragment:
        raise InvalidInputError(f"a draft's address names its model, as in http://host:8000/v1#model; got {address!r}")
    url = parts._replace(path=f"{parts.path.rstrip('/') or '/v1'}/completions", fragment="").geturl()

    def write(prompt: str, tokens: int) -> str:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": parts.fragment, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = httpx.post(url, json=body, headers=headers, timeout=60)  # ends what nobody waits for any more
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    return TextDraft(write, name=address, source=address)
