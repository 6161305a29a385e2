"""The next token of one request: transformers' own logits processors and stopping criteria, prepared by `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..models.generation import OUTPUT_SETTINGS, count_new_tokens, take_lengths, usable_config, with_generation_config
from ..models.loading import LoadedModel, eos_token_ids
from .requests import Request


class Prepared:
    """What `model.generate` prepares for one prompt, by a loop of our own that takes the place of its own."""

    def __init__(self, options: dict[str, Any], model: PreTrainedModel, input_ids: Tensor, mask: Tensor):
        self.processors, self.criteria, self.config = LogitsProcessorList(), StoppingCriteriaList(), GenerationConfig()
        type(model).generate(  # type: ignore[attr-defined]
            model, input_ids=input_ids, attention_mask=mask, custom_generate=self._take, **options
        )

    def _take(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **_: Any,
    ) -> Tensor:
        self.processors, self.criteria, self.config = logits_processor, stopping_criteria, generation_config
        return input_ids


def decoding_settings(
    target: LoadedModel, requests: Sequence[Request], kept_tokens: int
) -> tuple[GenerationConfig, dict[str, Any], list[int]]:
    """Settings of `model.generate` for requests of one batch.

    Args:
        target: The model that answers.
        requests: Share their sampling settings and options.
        kept_tokens: Width of the batch after SpecPC.

    Returns:
        The config of the model that generates; the arguments; the ids that end an answer.
    """
    options = dict(requests[0].generate_options)
    # Length, stop strings and the form of the output are the requests', not the model's.
    config = usable_config(target.model, without=("max_length", "stop_strings", *OUTPUT_SETTINGS))
    options["max_new_tokens"] = max(request.max_new_tokens for request in requests)
    take_lengths(config, options)
    prompt_tokens = max(len(request.prompt_ids) for request in requests)
    if kept_tokens != prompt_tokens:
        count_new_tokens(config, prompt_tokens)
    eos = options.get("eos_token_id", eos_token_ids(with_generation_config(target.model, config)))
    eos = [eos] if isinstance(eos, int) else list(eos or [])
    options.setdefault("pad_token_id", eos[0] if eos else 0)
    return config, options | requests[0].sampling.generate_options(), eos


class Sampler:
    """Chooses the tokens of one request and says when its criteria end it.

    Args:
        target: The model that answers.
        request: The request.
        input_ids: LongTensor [tokens], its prompt after SpecPC, on the model's device.
    """

    def __init__(self, target: LoadedModel, request: Request, input_ids: Tensor):
        config, options, self.eos = decoding_settings(target, [request], len(input_ids))
        model = with_generation_config(target.model, config)
        ids = input_ids[None]
        prepared = Prepared(options, model, ids, torch.ones_like(ids))
        self._processors, self._samples = prepared.processors, bool(prepared.config.do_sample)
        # The slot itself knows length and end of sequence, without a tensor.
        self._criteria = [c for c in prepared.criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
        self._generator: torch.Generator | None = None
        if request.sampling.seed is not None:
            self._generator = torch.Generator(ids.device).manual_seed(request.sampling.seed)
        self._ids = torch.cat([ids, ids.new_zeros(1, request.max_new_tokens)], dim=1)
        self._count = ids.shape[1]

    @property
    def takes_highest(self) -> bool:
        """Whether the next token is that with the highest logit, whatever came before."""
        return not self._samples and not self._processors

    def choose(self, logits: Tensor) -> Tensor:
        """The next token, LongTensor [1], from logits [1, vocabulary]."""
        scores = self._processors(
            cast("torch.LongTensor", self._ids[:, : self._count]), cast("torch.FloatTensor", logits.float())
        )
        if not self._samples:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[:, 0]

    def append(self, token: int | Tensor) -> None:
        """Record the token that was chosen."""
        self._ids[:, self._count] = token
        self._count += 1

    def ends(self) -> bool:
        """Whether the caller's criteria, or the model's, end the answer after its newest token."""
        ids = self._ids[:, : self._count]
        return any(bool(_asked(criterion, ids)) for criterion in self._criteria)


def _asked(criterion: StoppingCriteria, ids: Tensor) -> Any:
    stopped = criterion(ids, None)
    return stopped.any() if isinstance(stopped, Tensor) else stopped
