"""SpecKV: generate from a KV cache that keeps only what a draft's guess of the answer says will be needed.

Galim et al., "Draft-based Approximate Inference for LLMs", ICLR 2026, section 4.1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteriaList

from ..attention import attention_view
from ..config import SpecKVConfig
from ..errors import InvalidInputError
from ..models import LoadedModel, ModelSpec, cut_after_end, end_ids, load_model
from ..results import Generation, Usage
from .checks import as_list, as_stops, check_options, check_prompt_length, pad_left
from .eviction import prefill
from .lookahead import Lookahead
from .stopping import RaiseOnNan, StopOnText, cut_at_stop
from .streaming import TextStream


class SpecKV:
    """Serve a target model with a KV cache of fixed size.

        kv = SpecKV("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", SpecKVConfig(max_capacity_prompt=512))
        print(kv.generate(prompt, max_new_tokens=128)[0].text)

    A prompt that fits `max_capacity_prompt` gives exactly what `model.generate` gives, and the draft does not run.
    Neither model is changed. Safe to use from many threads: requests take turns.

    Args:
        target: What `load_model` takes. Its full-attention layers drop pairs; sliding-window layers are left alone.
        draft: What `load_model` takes; may have another vocabulary. None only with `lookahead_tokens=0` (SnapKV).
        config: The settings.

    Raises:
        ModelLoadError: a model cannot be loaded.
        UnsupportedModelError: the target's attention cannot be observed.
        InvalidInputError: no draft, or the vocabularies differ and a tokenizer is missing.
    """

    def __init__(self, target: ModelSpec, draft: ModelSpec | None = None, config: SpecKVConfig | None = None):
        self.config = config or SpecKVConfig()
        self.target: LoadedModel = load_model(target)
        self.draft: LoadedModel | None = None if draft is None else load_model(draft)
        self._view = attention_view(self.target.model)
        if self.draft is None and self.config.lookahead_tokens != 0:
            raise InvalidInputError("SpecKV needs a draft model; without one set lookahead_tokens=0, which is SnapKV")
        self._lookahead = None if self.draft is None else Lookahead(self.target, self.draft)

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
        """Write after each prompt; several prompts run as one left-padded batch.

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
        """
        stops = check_options(self.target, max_new_tokens, temperature, top_p, top_k, stop, options)
        ids, mask = pad_left(self._encode(prompts, add_special_tokens))
        check_prompt_length(self.target, ids.shape[1], max_new_tokens)
        if max_new_tokens == 0:
            empty = torch.empty(ids.shape[0], 0, dtype=torch.long)
            return self._results(empty, mask, [[] for _ in ids], {"total": 0.0}, stops)

        begun = time.perf_counter()
        cache, guesses, timings = self.compress(ids, mask, max_new_tokens)
        begun_decode = time.perf_counter()
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p or 1.0, "top_k": top_k or 0}
        criteria = [StopOnText(self.target.require_tokenizer(), stops, ids.shape[1])] if stops else []
        criteria += options.pop("stopping_criteria", None) or []
        processors = [RaiseOnNan(), *(options.pop("logits_processor", None) or [])]
        ends = end_ids(self.target.model)
        options.setdefault("pad_token_id", ends[0] if ends else 0)
        device = self.target.device
        with self.target.lock, torch.inference_mode(), _seeded(seed if temperature > 0 else None, device):
            out = self.target.model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                stopping_criteria=StoppingCriteriaList(criteria),
                logits_processor=processors,
                **sampling,
                **options,
            )
        timings |= {"decode": time.perf_counter() - begun_decode, "total": time.perf_counter() - begun}
        return self._results(out[:, ids.shape[1] :].cpu(), mask, guesses, timings, stops)

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """The text of `generate(prompt, **options)` in pieces, as it is written.

        Closing the iterator early stops the generation at its next token. Errors of the generation are raised here.

        Raises:
            InvalidInputError: more than one prompt, or as `generate`.
        """
        tokenizer = self.target.require_tokenizer()
        if len(self._encode(prompt, True)) != 1:
            raise InvalidInputError("stream takes one prompt; use generate for several")
        stops = as_stops(options.get("stop"))
        return TextStream(tokenizer, stops).run(lambda **more: self.generate(prompt, **options, **more))

    def compress(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int
    ) -> tuple[DynamicCache | None, list[list[int]], dict[str, float]]:
        """The target's cache for a left-padded batch, to be handed to `model.generate` with the same ids and mask.

        Args:
            input_ids, attention_mask: LongTensor [batch, tokens].
            max_new_tokens: how much is to be written: the length of the guess, unless the config names one.

        Returns:
            The cache, or None where everything fits; the guesses; and the seconds of "lookahead" and "prefill".
        """
        if input_ids.shape[1] - 1 <= self.config.max_capacity_prompt:
            return None, [[] for _ in input_ids], {"lookahead": 0.0, "prefill": 0.0}
        begun = time.perf_counter()
        tokens = max_new_tokens if self.config.lookahead_tokens is None else self.config.lookahead_tokens
        guesses = [torch.empty(0, dtype=torch.long) for _ in input_ids]
        if tokens and self._lookahead is not None:
            guesses = self._lookahead.guess(input_ids, attention_mask, tokens)
        guessed = time.perf_counter()
        with self.target.lock:
            cache, _ = prefill(self._view, input_ids, attention_mask, guesses, self.config)
        timings = {"lookahead": guessed - begun, "prefill": time.perf_counter() - guessed}
        return cache, [guess.tolist() for guess in guesses], timings

    def _encode(self, prompts: Any, add_special_tokens: bool) -> list[list[int]]:
        rows = as_list(prompts)
        if rows and isinstance(rows[0], str):
            tokenizer = self.target.require_tokenizer()
            rows = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in rows]
        for row in rows:
            if not row:
                raise InvalidInputError("a prompt is empty; give at least one token")
            if min(row) < 0 or max(row) >= self.target.vocabulary:
                raise InvalidInputError(f"token ids of {self.target.name} must be in [0, {self.target.vocabulary})")
        return rows

    def _results(
        self, new: Tensor, mask: Tensor, guesses: list[list[int]], timings: dict[str, float], stops: Sequence[str]
    ) -> list[Generation]:
        ends, tokenizer = end_ids(self.target.model), self.target.tokenizer
        results = []
        for row, real, guess in zip(new, mask.sum(dim=1).tolist(), guesses, strict=True):
            ids = cut_after_end(row, ends).tolist()
            ended = bool(ids) and ids[-1] in ends
            text, stopped = "", False
            if tokenizer is not None:
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                if stops:
                    ids, text, stopped = cut_at_stop(tokenizer, ids, text, stops)
            usage = Usage(real, len(ids), min(real, self.config.max_capacity_prompt))
            reason = "stop" if ended or stopped else "length"
            results.append(Generation(text, ids, usage, dict(timings), reason, guess))
        return results


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and put its generators back as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
