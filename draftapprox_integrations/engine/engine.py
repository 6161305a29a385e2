"""`SpecKV`, the engine: checked requests, a shared queue, and streams of text around the method's pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from torch import Tensor

from ..config import MethodConfig, Positions, SpecKVConfig
from ..errors import EngineClosedError
from ..models.loading import LoadedModel, ModelSpec, load_model
from ..results import Generation
from ..speckv.text_draft import DraftSpec, TextDraft, as_draft, draft_reference
from .likelihood import Likelihood, log_likelihood
from .pipeline import Pipeline
from .requests import Request, Sampling
from .scheduler import Scheduler
from .streams import AsyncStream, Stream
from .validation import as_prompts, check_config, check_options, check_prompt_ids, check_single
from .whole import run_whole


class SpecKV:
    """Generate with a target model whose KV cache has a fixed size.

        kv = SpecKV("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", SpecKVConfig(max_capacity_prompt=512))
        print(kv.generate(prompt, max_new_tokens=128)[0].text)

    A prompt within the budget gives exactly what `model.generate` gives, and the draft does not run. Neither model is
    changed. Safe to use from many threads and tasks: their requests share one running batch.

    Args:
        target: What `load_model` takes. Full-attention layers drop pairs; sliding-window layers are left alone.
        draft: What `load_model` takes; may have another vocabulary. "self": the target drafts the lookahead itself,
            from a part of the prompt that SpecPC selects. "http://host:8000/v1#model", an LLM of LangChain or
            LlamaIndex, or a `TextDraft`: a model elsewhere writes it as text. None only with `lookahead_tokens=0`
            (SnapKV).
        config: `SpecKVConfig`; `SpecKVPCConfig` for the cascade; `SpecPCConfig` to compress prompts only.
        positions: Positions of the tokens that SpecPC keeps: "renumber" counts 0, 1, 2, ...; "original" keeps those of
            the whole prompt.
        max_batch_size: Most rows of the running batch.

    Raises:
        ModelLoadError: a model cannot be loaded.
        UnsupportedModelError: the target's attention cannot be observed, or it takes no position ids.
        InvalidInputError: no draft; the vocabularies differ and a tokenizer is missing; or "original" positions with a
            config without SpecPC.
    """

    def __init__(
        self,
        target: ModelSpec,
        draft: DraftSpec = None,
        config: MethodConfig | None = None,
        *,
        positions: Positions = "renumber",
        max_batch_size: int = 8,
    ):
        self.config = SpecKVConfig() if config is None else config
        self.positions = positions
        check_config(self.config)
        target_model = load_model(target)
        self_draft = isinstance(draft, str) and draft == "self"
        draft_model = None if draft is None else target_model if self_draft else as_draft(draft)
        pipeline = Pipeline(target_model, draft_model, self.config, self_draft=self_draft, positions=positions)
        self._pipeline: Pipeline | None = pipeline
        self._scheduler = Scheduler(pipeline, max_batch_size)

    # ------------------------------------------------------------------ generating

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        add_special_tokens: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Generate after each prompt. Prompts join the engine's running batch, with those of other threads.

        Args:
            prompts: A text, texts, token ids of one prompt, or of several (lists, or a LongTensor [batch, tokens]).
            max_new_tokens: Most tokens to generate, >= 0.
            temperature: 0 is greedy; above, sampling.
            top_p, top_k: Truncation of the sampling distribution; None for none.
            stop: Texts before which the answer ends, also where they span several tokens.
            seed: Makes sampling repeatable: each prompt gets what `torch.manual_seed(seed)` before `model.generate`
                gives it alone.
            add_special_tokens: Whether the tokenizer adds BOS to texts; False for texts from a chat template.
            timeout: Most seconds to wait; None for no limit.
            **options: Further arguments of `model.generate`: `repetition_penalty`, `logits_processor`, ...

        Returns:
            One `Generation` per prompt.

        Raises:
            InvalidInputError: an empty prompt, one beyond a model's window, or an option that cannot be used.
            GenerationTimeoutError: it took longer than `timeout`.
            ScoringError: a model produced NaN.
            EngineClosedError: `close` was called.
        """
        requests = self._requests(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
            seed=seed,
            add_special_tokens=add_special_tokens,
            **options,
        )
        shared = not options.keys().isdisjoint(("logits_processor", "stopping_criteria"))
        if len(requests) > 1 and shared and timeout is None:
            return _raised(run_whole(self._open_pipeline(), requests))  # they may expect the rows of one batch
        streams = [Stream(request, self.target.tokenizer, timeout) for request in requests]
        # A thread inside a model cannot leave in time, so that a call with a timeout waits for another.
        serve = self._scheduler.run if timeout is None else self._scheduler.submit
        try:
            serve(streams)
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """Iterate over the text of `generate(prompt, **options)` as it is generated.

        The request joins the engine's running batch. Closing the iterator early ends the generation at its next token.

        Args:
            prompt: One prompt.
            **options: As for `generate`.

        Raises:
            InvalidInputError: more than one prompt, or as `generate`.
            GenerationTimeoutError: it took longer than `timeout`.
        """
        check_single(prompt)
        (stream,) = self.submit(prompt, **options)
        yield from stream.pieces()

    async def agenerate(self, prompts: Any, **options: Any) -> list[Generation]:
        """As `generate`, in the engine's thread: the event loop stays free."""
        streams = await self.asubmit(prompts, **options)
        try:
            return [await stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()

    async def astream(self, prompt: str | Sequence[int], **options: Any) -> AsyncIterator[str]:
        """Asynchronous form of `stream`. A cancelled task ends the generation at its next token."""
        check_single(prompt)
        (stream,) = await self.asubmit(prompt, **options)
        async for piece in stream.pieces():
            yield piece

    def log_likelihood(
        self, prompt: str | Sequence[int], answer: str | Sequence[int], *, max_new_tokens: int = 256
    ) -> Likelihood:
        """How likely the target finds an answer after what the method keeps of the prompt.

        Args:
            prompt, answer: Texts, or token ids. Of two texts, the answer's tokens are those of both together beyond the
                prompt's; so a space between them belongs to the answer.
            max_new_tokens: As for `generate`: SpecKV's lookahead, by default, follows from it.

        Raises:
            InvalidInputError: an empty prompt, ids that the target does not know, or more than a model's window.
            ScoringError: a model produced NaN.
            EngineClosedError: `close` was called.
        """
        pipeline = self._open_pipeline()
        ids = self._as_ids(prompt)
        if isinstance(prompt, str) and isinstance(answer, str):
            said = self._as_ids(prompt + answer)[len(ids) :]
        else:
            said = self._as_ids(answer)
        check_prompt_ids(pipeline.target, [ids, said] if said else [ids])
        pipeline.check_length(len(ids), max(max_new_tokens, len(said)))
        return log_likelihood(pipeline, ids, said, max_new_tokens)

    def _as_ids(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            return list(self.target.require_tokenizer()(text)["input_ids"])
        return [int(token) for token in text]

    # ------------------------------------------------------------------ the queue

    def submit(self, prompts: Any, *, timeout: float | None = None, **options: Any) -> list[Stream]:
        """Queue prompts and return one stream per prompt, which gives its text in pieces or its result.

        Args:
            prompts: As for `generate`.
            timeout: Most seconds that a stream waits for its whole answer.
            **options: As for `generate`; and `protected`, per prompt and token whether SpecPC must keep it.
        """
        streams = [Stream(request, self.target.tokenizer, timeout) for request in self._requests(prompts, **options)]
        self._scheduler.submit(streams)
        return streams

    async def asubmit(self, prompts: Any, *, timeout: float | None = None, **options: Any) -> list[AsyncStream]:
        """Asynchronous form of `submit`; tokenizes in another thread."""
        requests = await asyncio.to_thread(self._requests, prompts, **options)
        streams = [AsyncStream(request, self.target.tokenizer, timeout) for request in requests]
        self._scheduler.submit(streams)
        return streams

    def _requests(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        add_special_tokens: bool = True,
        protected: Sequence[Sequence[bool]] | None = None,
        **options: Any,
    ) -> list[Request]:
        """Check the arguments of a call and make one request per prompt."""
        pipeline = self._open_pipeline()
        sampling = Sampling.pop_from(options)
        stop_strings = check_options(pipeline.target, max_new_tokens, stop, options)
        rows = as_prompts(prompts)
        if rows and isinstance(rows[0], str):
            tokenizer = pipeline.target.require_tokenizer()
            rows = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in rows]
        check_prompt_ids(pipeline.target, rows)
        masks = [None] * len(rows) if protected is None else [list(mask) for mask in protected]
        requests = []
        for ids, mask in zip(rows, masks, strict=True):
            pipeline.check_length(len(ids), max_new_tokens)
            requests.append(
                Request(
                    ids,
                    max_new_tokens,
                    sampling,
                    stop_strings,
                    generate_options=dict(options),
                    protected=mask,
                    fits_budget=pipeline.fits_budget(len(ids)),
                )
            )
        return requests

    # ------------------------------------------------------------------ models and lifetime

    @property
    def target(self) -> LoadedModel:
        """The model that answers."""
        return self._open_pipeline().target

    @property
    def draft(self) -> LoadedModel | TextDraft | None:
        """The draft; the target where it drafts for itself."""
        return self._open_pipeline().draft

    @property
    def draft_name(self) -> str | None:
        """Serializable reference to the draft: "self", a name, or None."""
        pipeline = self._open_pipeline()
        if pipeline.self_draft:
            return "self"
        return None if pipeline.draft is None else draft_reference(pipeline.draft)

    def room(self, prompt_tokens: int) -> int:
        """Most tokens that the target's window leaves for the answer to a prompt of `prompt_tokens` tokens; >= 0."""
        return max(self._open_pipeline().room(prompt_tokens), 0)

    @property
    def is_idle(self) -> bool:
        """Whether no submitted request waits or runs."""
        return self._scheduler.is_idle

    def close(self) -> None:
        """Release both models. Waiting and running requests, and every later call, raise `EngineClosedError`."""
        self._scheduler.close()
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise EngineClosedError("the engine was closed; make a new one")
        return self._pipeline

    def __repr__(self) -> str:
        if self._pipeline is None:
            return "SpecKV(closed)"
        return f"SpecKV({self.target.name!r}, {self.draft.name if self.draft else None!r}, {self.config})"

    def __deepcopy__(self, memo: object) -> SpecKV:
        return self  # a copy would double the weights

    def __reduce__(self) -> Any:
        raise TypeError(f"SpecKV holds the weights of {self.target.name} and is not pickled; save names and config")


def _raised(results: Sequence[Generation | Exception]) -> list[Generation]:
    """The results; the first error is raised."""
    made = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        made.append(result)
    return made
