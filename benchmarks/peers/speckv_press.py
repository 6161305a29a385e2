r"""SpecKV as a press of NVIDIA's kvpress: needs torch, transformers and kvpress, and nothing of this repository.

kvpress 0.5.5 wants transformers < 5.3 and this package a later one, so no environment holds both: copy this file beside
your script (docs/guides/kvpress.md). Which pairs it keeps is tested to be what the package keeps.

    press = SpecKVPress(compression_ratio=0.9, draft=draft, tail=template_tail(tokenizer))
    pipe = pipeline("kv-press-text-generation", model="...")
    pipe(f"{context}\n\nQuestion: {question}", press=press)["answer"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from kvpress import ScorerPress  # type: ignore[import-not-found]
from kvpress.utils import compute_n_kept, get_prerope_query_states  # type: ignore[import-not-found]
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import rotate_half

Reduction = Literal["max", "mean"]


@dataclass
class SpecKVPress(ScorerPress):  # type: ignore[misc]
    """SpecKV's eviction (arXiv 2506.08373, section 4.1): pairs are kept by the attention of the answer's draft.

    The model reads the lookahead behind the prefilled tokens. The queries of the last prefilled tokens and of the
    lookahead score the pairs before them; the lookahead's own pairs are dropped with the evicted ones. The lookahead
    only guides the choice: the kept pairs, and the hidden states that the model returns, are the prompt's own.

    Works with full causal attention, one prompt at a time, prefilled in one pass and without padding. A press that
    wraps another, such as `AdaKVPress`, cannot wrap this one.

    Args:
        compression_ratio: Share of the prefilled pairs to evict.
        draft: Model with the target's vocabulary that continues prefilled tokens and `tail` greedily.
        lookahead: Token ids of that continuation, in place of a draft; set them for each prompt.
        lookahead_tokens: Tokens that the draft generates.
        tail: Token ids of the prompt that follow the prefilled ones, such as those of `template_tail`.
        window_size: Number of last prefilled tokens that score and are always kept.
        kernel_size: Width of the smoothing along the prompt in tokens, odd.
        pool_type: Smoothing: "max" or "mean".
        reduction_type: How queries and the query heads of a KV head become one score: "max" or "mean".

    Raises:
        ValueError: names the setting, or the prompt that it cannot press, and what to do.
    """

    compression_ratio: float = 0.0
    draft: PreTrainedModel | None = field(default=None, repr=False)
    lookahead: Sequence[int] | None = None
    lookahead_tokens: int = 32
    tail: Sequence[int] = ()
    window_size: int = 8
    kernel_size: int = 7
    pool_type: Reduction = "max"
    reduction_type: Reduction = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that pooling is centred; got {self.kernel_size}")
        for name in ("pool_type", "reduction_type"):
            if getattr(self, name) not in ("max", "mean"):
                raise ValueError(f"{name} must be 'max' or 'mean'; got {getattr(self, name)!r}")
        for name in ("window_size", "lookahead_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        self._followers: int | None = None  # tokens that the running prefill reads behind the prompt

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        """Press the prefill of `model` inside the block."""
        if self.draft is model:
            raise ValueError("the target cannot draft while it is pressed: give its continuation as `lookahead`")
        if self.draft is None and self.lookahead is None:
            raise ValueError("set `draft` to a model, or `lookahead` to the token ids of a drafted answer")
        if (sliding := getattr(model.config.get_text_config(), "sliding_window", None)) is not None:
            raise ValueError(
                f"{type(model).__name__} has a sliding window of {sliding} tokens: use a model without one"
            )
        with ExitStack() as stack:
            stack.enter_context(super().__call__(model))
            text_model = model.model
            for handle in (
                text_model.register_forward_pre_hook(self._append_lookahead, with_kwargs=True),
                text_model.register_forward_hook(self._remove_lookahead, always_call=True),
            ):
                stack.callback(handle.remove)
            yield

    def _append_lookahead(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let the prefill read the lookahead behind the prompt."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return None  # decoding
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or args:
            raise ValueError("SpecKVPress presses calls with input_ids=..., by name")
        if len(ids) != 1 or (mask is not None and not bool(mask.all())):
            raise ValueError("SpecKVPress presses one prompt at a time, without padding")
        tail = torch.tensor([*self.tail], dtype=torch.long, device=ids.device)[None]
        following = torch.cat([tail, self._continuation(torch.cat([ids, tail], dim=1))], dim=1)
        self._followers = following.shape[1]
        made = {"input_ids": torch.cat([ids, following], dim=1)}
        if mask is not None:
            made["attention_mask"] = F.pad(mask, (0, self._followers), value=1)
        for name in ("position_ids", "cache_position"):
            if (positions := kwargs.get(name)) is not None:
                further = torch.arange(1, self._followers + 1, device=positions.device)
                made[name] = torch.cat([positions, positions[..., -1:] + further], dim=-1)
        return args, kwargs | made

    def _continuation(self, ids: Tensor) -> Tensor:
        """The lookahead of a prompt, int64 [1, any]."""
        if self.lookahead is not None or self.draft is None:
            return torch.tensor([*(self.lookahead or ())], dtype=torch.long, device=ids.device)[None]
        ids = ids.to(self.draft.device)
        out: Tensor = self.draft.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.lookahead_tokens, do_sample=False
        )
        return out[:, ids.shape[1] :].to(ids.device)

    def _remove_lookahead(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Return the prompt's hidden states only."""
        if output is not None and self._followers:
            output.last_hidden_state = output.last_hidden_state[:, : -self._followers]
        self._followers = None

    def compress(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Keep the pairs with the highest scores, in their order, and none of the lookahead's."""
        prompt = keys.shape[2] - (self._followers or 0)
        if self.compression_ratio == 0:
            return keys[:, :, :prompt].clone(), values[:, :, :prompt].clone()
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        # The sort is stable because max pooling makes ties: of equal scores the earlier pair is kept.
        ranked = scores.sort(dim=-1, descending=True, stable=True).indices
        kept = ranked[..., : compute_n_kept(prompt, self.compression_ratio)].sort(dim=-1).values
        index = kept[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index), values.gather(2, index)

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Score the prompt's pairs, float32 [1, kv_heads, prompt tokens]; infinite in the window."""
        if self._followers is None:
            raise ValueError(
                "no lookahead was read: enter SpecKVPress itself (`with press(model)`), not a press around it"
            )
        prompt = keys.shape[2] - self._followers
        window = min(self.window_size, compute_n_kept(prompt, self.compression_ratio))
        rows, columns = window + self._followers, prompt - window
        query = get_prerope_query_states(module, hidden_states[:, -rows:])
        cos, sin = (part[:, None, -rows:] for part in kwargs["position_embeddings"])
        query = query * cos + rotate_half(query) * sin
        scores = tail_scores(query, keys, columns, float(module.scaling), self.reduction_type)  # type: ignore[arg-type]
        return F.pad(pool(scores, self.pool_type, self.kernel_size), (0, window), value=torch.inf)


def tail_scores(query: Tensor, key: Tensor, columns: int, scaling: float, reduction: Reduction) -> Tensor:
    """Reduce the causal softmax attention of the last queries over them and over the heads of a KV head.

    Args:
        query: [1, heads, rows, head_dim]; the last row is that of the last key.
        key: [1, kv_heads, tokens, head_dim].
        columns: Number of keys to score, the first ones.
        scaling: Factor of query @ key.
        reduction: "max" or "mean".

    Returns:
        float32 [1, kv_heads, columns].
    """
    rows, tokens = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    later = torch.ones(rows, tokens, dtype=torch.bool, device=key.device).triu(tokens - rows + 1)
    scores = []
    for head in range(key.shape[1]):  # one KV head at a time: the weights of all would not fit beside a long prompt
        queries = query[:, head * group : (head + 1) * group].float() * scaling
        logits = queries @ key[:, head : head + 1].float().transpose(-1, -2)
        weights = logits.masked_fill_(later, -torch.inf).softmax(dim=-1)[..., :columns]
        scores.append(weights.amax(dim=(1, 2)) if reduction == "max" else weights.mean(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def pool(scores: Tensor, pool_type: Reduction, kernel_size: int) -> Tensor:
    """Smooth scores [1, kv_heads, tokens] along the tokens; "mean" counts zeros beyond the edges."""
    smooth = F.max_pool1d if pool_type == "max" else F.avg_pool1d
    return smooth(scores, kernel_size, stride=1, padding=kernel_size // 2)


def template_tail(
    tokenizer: PreTrainedTokenizerBase, question: str = "", answer_prefix: str = "", enable_thinking: bool = False
) -> list[int]:
    """Token ids that kvpress' pipeline feeds after the context that it presses: the press has to read them first.

    Args:
        tokenizer: The target's.
        question, answer_prefix, enable_thinking: As the pipeline gets them; the question only where it is not part of
            the context.
    """
    suffix = "\n"
    if tokenizer.chat_template is not None:
        marker = "#" * 16
        message = {"role": "user", "content": marker}
        text = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        suffix = str(text).split(marker)[1]
    return list(tokenizer(question + suffix + answer_prefix, add_special_tokens=False)["input_ids"])
