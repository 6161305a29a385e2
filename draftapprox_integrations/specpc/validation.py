"""Validate the arguments of SpecPC; every error says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import InvalidInputError, PromptTooLongError
from ..models.loading import LoadedModel
from .text.segmentation import Passage

Config = TypeVar("Config")


def as_passages(passages: Any, titles: Any = None, retriever_scores: Any = None) -> list[Passage]:
    """The arguments of `compress` as one list.

    Raises:
        InvalidInputError: passages that are not strings; another number of titles or scores than passages; a title
            that is not a string; a score that is not a number.
    """
    texts = check_passages(passages)
    titles = check_titles(titles, len(texts))
    scores = check_retriever_scores(retriever_scores, len(texts))
    return [Passage(*fields) for fields in zip(texts, titles, scores, strict=True)]


def check_passages(passages: Any) -> list[str]:
    """The passages as a list.

    Raises:
        InvalidInputError: not strings.
    """
    if isinstance(passages, str | bytes | Mapping) or not isinstance(passages, Iterable):
        raise InvalidInputError("passages must be a list of strings; wrap a single text as [text]")
    passages = list(passages)
    for index, passage in enumerate(passages):
        if not isinstance(passage, str):
            raise InvalidInputError(f"passages[{index}] must be a string; got {type(passage).__name__}")
    return [str(passage) for passage in passages]  # a plain str, also for numpy's


def check_query(query: Any) -> str:
    """The query.

    Raises:
        InvalidInputError: empty, blank, or not a string.
    """
    if not isinstance(query, str) or not query.strip():
        raise InvalidInputError(f"query must be a non-empty string: it says what matters; got {query!r}")
    return query


def check_titles(titles: Any, passages: int) -> list[str | None]:
    """One title or None per passage.

    Raises:
        InvalidInputError: another number of titles than passages.
    """
    if titles is None:
        return [None] * passages
    if isinstance(titles, str) or len(titles) != passages:
        raise InvalidInputError(f"titles must be None or a list of {passages} titles, one per passage")
    for index, title in enumerate(titles):
        if title is not None and not isinstance(title, str):
            raise InvalidInputError(f"titles[{index}] must be a string or None; got {type(title).__name__}")
    return list(titles)


def check_retriever_scores(scores: Any, passages: int) -> list[float | None]:
    """One number or None per passage.

    Raises:
        InvalidInputError: not one number or None for each passage.
    """
    if scores is None:
        return [None] * passages
    if isinstance(scores, str | bytes) or len(scores) != passages:
        raise InvalidInputError(
            f"retriever_scores must be one number or None for each of the {passages} passages; got {len(scores)}"
        )
    numbers = [as_number(score) for score in scores]
    for index, (score, number) in enumerate(zip(scores, numbers, strict=True)):
        if score is not None and number is None:
            raise InvalidInputError(f"retriever_scores[{index}] must be a number or None; got {score!r}")
    return numbers


def as_number(value: Any) -> float | None:
    """Return a number, a NumPy scalar or an array or tensor without dimensions as a float; None for anything else.

    A bool is no number, NaN is one.
    """
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value)


def check_protect(protect: Any) -> list[str | re.Pattern[str]]:
    """The patterns as a list; a single one is wrapped.

    Raises:
        InvalidInputError: neither strings nor compiled patterns.
    """
    patterns = [protect] if isinstance(protect, str | re.Pattern) else list(protect)
    for pattern in patterns:
        if not isinstance(pattern, str | re.Pattern) or pattern == "":
            raise InvalidInputError(f"protect must be non-empty strings or compiled patterns; got {pattern!r}")
    return patterns


def as_config(config: Any, kind: type[Config]) -> Config:
    """A config of class `kind`: as given, from a dict of its fields, or the defaults for None.

    Raises:
        InvalidInputError: another type, or an unknown field.
        ValueError: a field out of range.
    """
    if isinstance(config, kind):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise InvalidInputError(f"expected a {kind.__name__} or a dict of its fields; got {type(config).__name__}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in config or {} if name not in known]:
        raise InvalidInputError(f"{kind.__name__} has no {', '.join(unknown)}; its fields are {', '.join(known)}")
    return kind(**(config or {}))


def check_on_empty(on_empty: Any) -> None:
    """Raises:
    InvalidInputError: neither "drop" nor "keep_best".
    """
    if on_empty not in ("drop", "keep_best"):
        raise InvalidInputError(f"on_empty must be 'drop' or 'keep_best'; got {on_empty!r}")


def check_batch(
    draft: LoadedModel, input_ids: Any, attention_mask: Any, protected: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (long), mask (bool) and protected positions (bool), all [batch, tokens] on the CPU.

    A leading BOS is protected: every model was trained with it, and the paper's code may drop it.

    Raises:
        InvalidInputError: wrong shapes or types, an empty row, a row the draft cannot read.
    """
    ids = torch.as_tensor(input_ids).cpu()
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InvalidInputError(
            f"input_ids must be integers of shape [batch, tokens]; got {ids.dtype} {list(ids.shape)}"
        )
    mask = _like(ids, "attention_mask", attention_mask, default=True)
    protect = _like(ids, "protected", protected, default=False)
    lengths = mask.sum(dim=1)
    if ids.shape[0] == 0 or int(lengths.min()) == 0:
        raise InvalidInputError("every row of input_ids needs at least one token that is not padding")
    if int(lengths.max()) > draft.context_window:
        raise PromptTooLongError(
            f"a prompt has {int(lengths.max())} tokens, {draft.name} reads at most {draft.context_window}. "
            "Use compress(passages, query), which reads in groups, or a draft with a longer window."
        )
    real, vocabulary = ids[mask], draft.vocab_size
    if int(real.min()) < 0 or int(real.max()) >= vocabulary:
        raise InvalidInputError(
            f"input_ids must be in [0, {vocabulary}) for {draft.name}; got {int(real.min())} to {int(real.max())}. "
            "Ids of another model's tokenizer cannot be read; use compress on text."
        )
    bos = getattr(draft.model.config.get_text_config(), "bos_token_id", None)
    if isinstance(bos, int):
        protect = protect | (mask & (mask.cumsum(dim=1) == 1) & (ids == bos))
    return ids.long(), mask, protect & mask


def _like(ids: Tensor, name: str, given: Any, *, default: bool) -> Tensor:
    if given is None:
        return torch.full(ids.shape, default, dtype=torch.bool)
    tensor = torch.as_tensor(given).cpu().bool()
    tensor = tensor[None] if tensor.dim() == 1 else tensor
    if tensor.shape != ids.shape:
        raise InvalidInputError(f"{name} must have the shape of input_ids {list(ids.shape)}; got {list(tensor.shape)}")
    return tensor
