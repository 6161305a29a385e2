"""SpecKV: generate from a KV cache that keeps only what a draft's guess of the answer says will be needed.

Galim et al., "Draft-based Approximate Inference for LLMs", ICLR 2026, section 4.1; the cascade SpecKV-PC, section 4.3.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from ..config import SpecKVConfig, SpecKVPCConfig, SpecPCConfig
from ..errors import EngineClosedError, InvalidInputError
from ..models.loading import LoadedModel, ModelSpec, end_ids, load_model
from ..models.references import model_name
from ..results import Generation, Usage
from ..speckv.cache.ragged import decoding_model
from .pipeline import Pipeline, PreparedBatch
from .requests import Request, Sampling
from .scheduler import Scheduler
from .stopping import BatchStoppingCriteria, CatchNan, Row, cut_at_stop
from .streams import AsyncStream, Stream
from .validation import as_list, check_ids, check_options

Config = SpecKVConfig | SpecKVPCConfig | SpecPCConfig


class SpecKV:
    """Serve a target model with a KV cache of fixed size.

        kv = SpecKV("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", SpecKVConfig(max_capacity_prompt=512))
        print(kv.generate(prompt, max_new_tokens=128)[0].text)

    A prompt that fits `max_capacity_prompt` gives exactly what `model.generate` gives, and the draft does not run.
    Neither model is changed. Safe to use from many threads and tasks: batches take turns.

    Args:
        target: What `load_model` takes. Its full-attention layers drop pairs; sliding-window layers are left alone.
        draft: What `load_model` takes; may have another vocabulary. "self": the target drafts for itself, from a part
            of the prompt that SpecPC chose. None only with `lookahead_tokens=0` (SnapKV).
        config: `SpecKVConfig`; `SpecKVPCConfig` for the cascade; `SpecPCConfig` to shorten prompts only.
        max_batch_size: Most waiting requests of `stream`, `astream` and `agenerate` that are served as one batch.

    Raises:
        ModelLoadError: a model cannot be loaded.
        UnsupportedModelError: the target's attention cannot be observed.
        InvalidInputError: no draft, or the vocabularies differ and a tokenizer is missing.
    """

    def __init__(
        self,
        target: ModelSpec,
        draft: ModelSpec | Literal["self"] | None = None,
        config: Config | None = None,
        *,
        max_batch_size: int = 8,
    ):
        self.config = config or SpecKVConfig()
        served = load_model(target)
        own = isinstance(draft, str) and draft == "self"
        loaded = None if draft is None else served if own else load_model(draft)
        self._pipeline: Pipeline | None = Pipeline(served, loaded, self.config, own=own)
        self._turn = threading.Lock()  # one batch at a time, so that only one prompt's full layer is ever alive
        self._scheduler = Scheduler(max_batch_size)

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
        **options: Any,
    ) -> list[Generation]:
        """Write after each prompt; several prompts run as one left-padded batch, in this thread.

        Args:
            prompts: A text, texts, token ids of one prompt, or of several (lists, or a LongTensor [batch, tokens]).
            max_new_tokens: Most tokens to write, >= 0.
            temperature: 0 is greedy; above, sampling.
            top_p, top_k: Limits of sampling; None for none.
            stop: Texts before which the answer ends, even if they are split across tokens.
            seed: Makes sampling repeatable: the same as `torch.manual_seed(seed)` before `model.generate`.
            add_special_tokens: Whether the tokenizer adds BOS to texts; False for texts from a chat template.
            **options: Further arguments of `model.generate`: `repetition_penalty`, `logits_processor`, ...

        Returns:
            One `Generation` per prompt.

        Raises:
            InvalidInputError: an empty prompt, one beyond the window of a model, or an option that cannot be used.
            ScoringError: a model produced NaN.
            EngineClosedError: `close` was called.
        """
        requests = self.requests(
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
        results = []
        for result in self.serve(requests):
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """The text of `generate(prompt, **options)` in pieces, as it is written.

        Waits its turn behind other streams; waiting ones of one kind run as one batch. Closing the iterator early
        stops the generation at its next token. Errors of the generation are raised here.

        Args:
            prompt: One prompt.
            **options: As for `generate`; and `timeout`, the most seconds to wait for the whole text.

        Raises:
            InvalidInputError: more than one prompt, or as `generate`.
            GenerationTimeoutError: it took longer than `timeout`.
        """
        (stream,) = self.submit(prompt, single=True, **options)
        yield from stream.pieces()

    async def agenerate(self, prompts: Any, **options: Any) -> list[Generation]:
        """As `generate`, served by the engine's worker: the event loop stays free, waiting requests share batches.

        Args:
            prompts: As for `generate`.
            **options: As for `generate`; and `timeout`, the most seconds to wait.
        """
        streams = await self.asubmit(prompts, **options)
        try:
            return [await stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()

    async def astream(self, prompt: str | Sequence[int], **options: Any) -> AsyncIterator[str]:
        """As `stream`, for an event loop. A cancelled task stops the generation at its next token."""
        (stream,) = await self.asubmit(prompt, single=True, **options)
        async for piece in stream.pieces():
            yield piece

    # ------------------------------------------------------------------ for parts that build on the engine

    def submit(
        self, prompts: Any, *, timeout: float | None = None, single: bool = False, **options: Any
    ) -> list[Stream]:
        """Put prompts into the queue; each stream gives its text in pieces or its result. Arguments as `generate`."""
        streams = [Stream(request, self.target.tokenizer, timeout) for request in self.requests(prompts, **options)]
        _check_single(single, streams)
        self._scheduler.submit(streams, self.serve)
        return streams

    async def asubmit(
        self, prompts: Any, *, timeout: float | None = None, single: bool = False, **options: Any
    ) -> list[AsyncStream]:
        """As `submit`, for an event loop: texts are turned into tokens in another thread."""
        requests = await asyncio.to_thread(self.requests, prompts, **options)
        streams = [AsyncStream(request, self.target.tokenizer, timeout) for request in requests]
        _check_single(single, streams)
        self._scheduler.submit(streams, self.serve)
        return streams

    def requests(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        add_special_tokens: bool = True,
        protected: Sequence[Sequence[bool]] | None = None,
        **options: Any,
    ) -> list[Request]:
        """Checked requests; arguments as `generate`.

        Args:
            protected: Per prompt and id, whether SpecPC must keep it.
        """
        sampling = Sampling.taken_from(options)
        stops = check_options(self.target, max_new_tokens, stop, options)
        rows = as_list(prompts)
        if rows and isinstance(rows[0], str):
            tokenizer = self.target.require_tokenizer()
            rows = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in rows]
        check_ids(self.target, rows)
        shields = [None] * len(rows) if protected is None else [list(row) for row in protected]
        requests = []
        for row, shield in zip(rows, shields, strict=True):
            self._steps.check_length(len(row), max_new_tokens)
            fits = self._steps.fits(len(row))
            requests.append(Request(row, max_new_tokens, sampling, stops, dict(options), shield, fits))
        return requests

    def serve(self, requests: Sequence[Request]) -> list[Generation | Exception]:
        """Run requests of one kind as one batch, in this thread.

        Returns:
            Per request its result, or the error of this request alone.

        Raises:
            Exception: what went wrong with the whole batch.
        """
        if requests[0].max_new_tokens == 0:
            return [self._nothing(request) for request in requests]
        with self._turn:
            begun = time.perf_counter()
            ready = self._steps.run(requests)
            if ready is None:
                return [self._nothing(request, "cancelled") for request in requests]
            begun_decode = time.perf_counter()
            rows = self._decode(requests, ready)
            ended = time.perf_counter()
            timings = ready.timings | {"decode": ended - begun_decode, "total": ended - begun}
            return [
                row.error or self._result(row, real, guess, timings, ready.kv_bytes)
                for row, real, guess in zip(rows, ready.mask.sum(dim=1).tolist(), ready.guesses, strict=True)
            ]

    @property
    def target(self) -> LoadedModel:
        """The model that answers."""
        return self._steps.target

    @property
    def draft(self) -> LoadedModel | None:
        """The model that guesses."""
        return self._steps.draft

    @property
    def draft_name(self) -> str | None:
        """What a part that shares this engine saves of its draft."""
        if self._steps.own:
            return "self"
        return None if self.draft is None else model_name(self.draft)

    def close(self) -> None:
        """Let go of both models. What waits or runs ends with `EngineClosedError`; so does every later call."""
        self._scheduler.close()
        with self._turn:
            self._pipeline = None

    def __repr__(self) -> str:
        if self._pipeline is None:
            return "SpecKV(closed)"
        return f"SpecKV({self.target.name!r}, {self.draft.name if self.draft else None!r}, {self.config})"

    def __deepcopy__(self, memo: object) -> SpecKV:
        return self  # a copy would double the weights

    def __reduce__(self) -> Any:
        raise TypeError(f"SpecKV holds the weights of {self.target.name} and is not pickled; save names and config")

    # ------------------------------------------------------------------ inside

    @property
    def _steps(self) -> Pipeline:
        if self._pipeline is None:
            raise EngineClosedError("the engine was closed; make a new one")
        return self._pipeline

    def _decode(self, requests: Sequence[Request], ready: PreparedBatch) -> list[Row]:
        model, device = decoding_model(self.target.model, ready.cache), self.target.device
        options = dict(requests[0].options)
        ends = options.get("eos_token_id", end_ids(model))
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        watch = BatchStoppingCriteria(
            requests, self.target.tokenizer, ends, options.pop("stopping_criteria", None) or ()
        )
        processors = [CatchNan(watch.rows), *(options.pop("logits_processor", None) or [])]
        options.setdefault("pad_token_id", ends[0] if ends else 0)
        if ready.position_ids is not None:
            options["position_ids"] = ready.position_ids.to(device)
        sampling = requests[0].sampling
        seed = sampling.seed if sampling.temperature > 0 else None
        with self.target.lock, torch.inference_mode(), _seeded(seed, device):
            model.generate(  # type: ignore[operator]
                input_ids=ready.ids.to(device),
                attention_mask=ready.mask.to(device),
                past_key_values=ready.cache,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                stopping_criteria=StoppingCriteriaList([watch]),
                logits_processor=processors,
                **sampling.arguments(),
                **options,
            )
        return watch.rows

    def _result(
        self, row: Row, prompt_tokens: int, guess: list[int], timings: dict[str, float], kv_bytes: int | None
    ) -> Generation:
        text, tokenizer = "", self.target.tokenizer
        if tokenizer is not None:
            text = str(tokenizer.decode(row.token_ids, skip_special_tokens=True))
            text = cut_at_stop(text, row.request.stops)
        usage = self._usage(len(row.request.ids), prompt_tokens, len(row.token_ids), kv_bytes)
        return Generation(text, row.token_ids, usage, dict(timings), row.finish_reason or "length", guess)

    def _nothing(self, request: Request, reason: str = "length") -> Generation:
        kept = len(request.ids)
        return Generation("", [], self._usage(kept, kept, 0), {"total": 0.0}, reason)

    def _usage(self, prompt: int, kept: int, written: int, kv_bytes: int | None = None) -> Usage:
        return Usage(prompt, written, self._steps.kept_pairs(kept), kept, kv_bytes)


def _check_single(single: bool, streams: Sequence[Any]) -> None:
    if single and len(streams) != 1:
        raise InvalidInputError("stream takes one prompt; use generate for several")


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and put its generators back as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
