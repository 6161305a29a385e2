"""Settings of the methods: frozen, keyword-only, checked when they are made.

Field names are those of the paper's repository (furiosa-ai/draft-based-approx-llm), so that a published
configuration can be copied over word for word.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Granularity = Literal["token", "word", "sentence"]
PoolType = Literal["max", "avg", "mean"]
Reduction = Literal["max", "mean"]
HeadBudgets = Literal["uniform", "adaptive"]
Prefill = Literal["dense", "sparse"]
Positions = Literal["renumber", "original"]
QuantizationBackend = Literal["torch", "hqq", "quanto"]

# SpecKV's longest default lookahead, in tokens: drafting delays the first token (docs/LOG.md).
LOOKAHEAD_LIMIT = 64

_PAPER_SPECPC: dict[str, dict[str, int]] = {
    # cfg/paper/specpc: Llama-3.2-1B drafting for Llama-3.1-8B; Qwen2.5-0.5B drafting for Qwen2.5-14B
    "llama3": {"kernel_size": 32, "neighbor_tokens": 32},
    "qwen2.5": {"kernel_size": 64, "neighbor_tokens": 64},
}


def _check_int(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}; got {value!r}")


def _check_sizes(config: Any, **limits: int) -> None:
    """Check integer fields against their lower limits, unless None is their default; and the window's upper limit."""
    for field_ in fields(config):
        if field_.name in limits and (value := getattr(config, field_.name)) is not field_.default:
            _check_int(field_.name, value, limits[field_.name])
    if config.window_size is not None and config.window_size > config.max_capacity_prompt:
        raise ValueError(
            f"window_size must be <= max_capacity_prompt ({config.max_capacity_prompt}), "
            f"because the window is always kept; got {config.window_size}"
        )


def _changed_fields(config: Any) -> list[str]:
    return [field.name for field in fields(config) if getattr(config, field.name) != field.default]


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1]; got {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class SpecPCConfig:
    """Settings of the paper's SpecPC (section 4.2): tokens in, positions out. Field names are those of its repository.

    `SpecPC.select` uses all of them. `SpecPC.compress` uses those that its scorer can honour, and refuses the others by
    name: see its docstring. Settings of text alone are in `CompressionConfig`.

    Args:
        max_capacity_prompt: Tokens that `select` keeps, the window included; the budget of `compress` when neither
            `max_tokens` nor `keep_ratio` is given. At least `window_size`.
        window_size: Number of last prompt tokens whose queries are scored with; `select` always keeps them. None: 64 as
            in the paper, or `max_capacity_prompt` if that is smaller. `compress` scores with the query and the
            template's tail instead.
        pool_type: Smoothing of scores along the prompt: "max", "avg" (same as "mean"), or None for no smoothing.
        kernel_size: Width of the smoothing window in tokens, >= 1.
        neighbor_tokens: A chosen token brings this many tokens around it, itself included. None: `kernel_size`.
            0: none.
        reduction_type: How heads, queries, layers and steps become one number: "max", or "mean" (kept as a sum, as in
            the paper's code: only the order matters).
        lookahead_tokens: Tokens drafted before choosing, >= 1. The first comes with the prefill; every further one adds
            a decoding step whose query is scored with too. None: 1 as in the paper; in the cascade, SpecKV's.
        starting_layer_index: First layer whose attention counts. None: 8 as in the paper, or half of the layers of a
            model with fewer than 16.
        weighted_query: Weigh the window's queries linearly from 0 (oldest) to 1 (newest).
        prefill_chunk_size: Prefill the prompt in chunks of this many tokens to bound memory. None: in one pass.

    Raises:
        ValueError: names the field, the value and the limit.
    """

    max_capacity_prompt: int = 1024
    window_size: int | None = None
    pool_type: PoolType | None = "max"
    kernel_size: int = 32
    neighbor_tokens: int | None = None
    reduction_type: Reduction = "max"
    lookahead_tokens: int | None = None
    starting_layer_index: int | None = None
    weighted_query: bool = True
    prefill_chunk_size: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(
            self, max_capacity_prompt=1, kernel_size=1, lookahead_tokens=1, window_size=1, neighbor_tokens=0,
            starting_layer_index=0, prefill_chunk_size=1,
        )  # fmt: skip
        _check_choice("pool_type", self.pool_type, (*get_args(PoolType), None))
        _check_choice("reduction_type", self.reduction_type, get_args(Reduction))
        if not isinstance(self.weighted_query, bool):
            raise ValueError(f"weighted_query must be True or False; got {self.weighted_query!r}")

    @classmethod
    def paper(cls, family: Literal["llama3", "qwen2.5"], **changes: Any) -> SpecPCConfig:
        """The paper's published settings for a draft family, with `changes` on top.

        Raises:
            ValueError: for a family the paper has no settings for.
        """
        _check_choice("family", family, tuple(_PAPER_SPECPC))
        settings: dict[str, Any] = {"window_size": 64, "lookahead_tokens": 1, "starting_layer_index": 8}
        return cls(**(settings | _PAPER_SPECPC[family] | changes))  # the other defaults are the paper's too

    def resolved_window(self) -> int:
        """The window in use: `window_size`, or what None stands for."""
        if self.window_size is not None:
            return self.window_size
        return min(64, self.max_capacity_prompt)

    def resolved_neighbors(self) -> int:
        """`neighbor_tokens` with None read as `kernel_size` (golden README, rule 6)."""
        return self.kernel_size if self.neighbor_tokens is None else self.neighbor_tokens

    def resolved_start(self, layers: int) -> int:
        """The first layer whose attention counts in a model of `layers` layers.

        Raises:
            ValueError: if `starting_layer_index` is set and the model has no such layer.
        """
        if self.starting_layer_index is None:
            return min(8, layers // 2)
        if self.starting_layer_index >= layers:
            raise ValueError(
                f"starting_layer_index must be < {layers}, the number of layers of this draft; "
                f"got {self.starting_layer_index}"
            )
        return self.starting_layer_index

    def changed(self) -> list[str]:
        """Names of the fields that differ from their defaults."""
        return _changed_fields(self)


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """Settings of `SpecPC.compress` that speak of text: what is kept or dropped whole, and what comes with it.

    Args:
        granularity: The unit that is kept or dropped: "sentence", "word", or "token" (the draft's).
        separator: Put between the kept pieces of a passage. None: a line break between sentences, which keeps headings,
            lists and tables apart; a space between words or tokens.
        keep_context: How many sentences before and after a kept one come with it where the budget allows. 0 unless
            `granularity` is "sentence".
        min_per_passage: How many units of each passage, its best ones, come before all others; where the budget cannot
            pay for all of these, every passage's best one comes before a second one of any.

    Raises:
        ValueError: names the field, the value and the limit.
    """

    granularity: Granularity = "sentence"
    separator: str | None = None
    keep_context: int = 0
    min_per_passage: int = 0

    def __post_init__(self) -> None:
        _check_choice("granularity", self.granularity, get_args(Granularity))
        _check_int("keep_context", self.keep_context, 0)
        _check_int("min_per_passage", self.min_per_passage, 0)
        if self.separator is not None and not isinstance(self.separator, str):
            raise ValueError(f"separator must be a string or None; got {self.separator!r}")
        if self.keep_context and self.granularity != "sentence":
            raise ValueError(
                f"keep_context must be 0 with granularity={self.granularity!r}: only sentences bring their neighbours; "
                f"got {self.keep_context}"
            )

    def resolved_separator(self) -> str:
        """The separator in use: `separator`, or what None stands for."""
        if self.separator is not None:
            return self.separator
        return "\n" if self.granularity == "sentence" else " "


@dataclass(frozen=True, kw_only=True)
class KVQuantization:
    """Storage format of the KV pairs that SpecKV keeps: low-bit integers instead of the model's dtype.

    Args:
        bits: Bits per number: 8 or 4.
        group_size: Largest number of values that share one scale; even, >= 2.
        backend: "torch" needs no other package and groups keys along a channel, values along a token, as KIVI does.
            "hqq" (8 or 4 bits) and "quanto" (4 bits) call the library and group along a token (extra `quantization`).

    Raises:
        ValueError: names the field, the value and the limit.
    """

    bits: int = 8
    group_size: int = 64
    backend: QuantizationBackend = "torch"

    def __post_init__(self) -> None:
        _check_choice("backend", self.backend, get_args(QuantizationBackend))
        _check_choice("bits", self.bits, (4,) if self.backend == "quanto" else (8, 4))
        _check_int("group_size", self.group_size, 2)
        if self.group_size % 2:
            raise ValueError(f"group_size must be even; got {self.group_size}")


@dataclass(frozen=True, kw_only=True)
class SpecKVConfig:
    """Settings of SpecKV's KV eviction (paper section 4.1). Field names are those of the paper's repository.

    Args:
        max_capacity_prompt: KV pairs to keep per layer and KV head, the window included. With `head_budgets="adaptive"`
            the mean over a layer's KV heads. At least `window_size`.
        window_size: Number of last prompt tokens whose queries score the prompt together with the lookahead's, and
            whose pairs are always kept. None: 8, or 32 with `lookahead_tokens=0` as in SnapKV (measured in
            docs/LOG.md). The paper's published settings use 32.
        pool_type: Smoothing of scores along the prompt: "max" or "mean".
        kernel_size: Width of the smoothing window in tokens, odd.
        reduction_type: How queries and the query heads of a KV group are reduced to one score: "max" or "mean".
        lookahead_tokens: Tokens that the draft generates ahead. None: the number of tokens to generate, at most
            `LOOKAHEAD_LIMIT`. 0: no draft, which is SnapKV.
        head_budgets: "uniform": every KV head keeps the same number of pairs. "adaptive" (Ada-KV, Feng et al. 2024):
            the KV heads of a layer share one budget, spent on the highest scores of all heads.
        floor_alpha: Only with "adaptive": share of `max_capacity_prompt - window_size` that every head keeps beyond the
            window, in [0, 1]. 1 equals "uniform".
        prefill: "dense" computes exact attention in every layer, so the kept pairs are the model's own. "sparse", as in
            the paper: prompt tokens attend to a band and to selected columns only, which is faster on long prompts and
            changes the pairs. Window and lookahead attend to everything. Sliding-window layers, and prompts shorter
            than band and columns together, stay dense.
        prefill_window_size: Only with "sparse": width of the band in tokens, the query's own included.
        prefill_vertical_size: Only with "sparse": columns before the band, the best of each layer and KV head.
        kv_quantization: "int8", "int4" or a `KVQuantization`: storage format of the kept pairs of full-attention
            layers, in batches with a prompt beyond the budget. Not with "adaptive".

    Raises:
        ValueError: names the field, the value and the limit; also for a field that would have no effect.
    """

    max_capacity_prompt: int = 256
    window_size: int | None = None
    pool_type: Reduction = "max"
    kernel_size: int = 7
    reduction_type: Reduction = "max"
    lookahead_tokens: int | None = None
    head_budgets: HeadBudgets = "uniform"
    floor_alpha: float = 0.2
    prefill: Prefill = "dense"
    prefill_window_size: int = 2048
    prefill_vertical_size: int = 2048
    kv_quantization: Literal["int8", "int4"] | KVQuantization | None = None

    def __post_init__(self) -> None:
        _check_sizes(
            self, max_capacity_prompt=1, kernel_size=1, lookahead_tokens=0, window_size=1, prefill_window_size=1,
            prefill_vertical_size=1,
        )  # fmt: skip
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that pooling is centred; got {self.kernel_size}")
        _check_choice("pool_type", self.pool_type, get_args(Reduction))
        _check_choice("prefill", self.prefill, get_args(Prefill))
        _check_choice("head_budgets", self.head_budgets, get_args(HeadBudgets))
        _check_share("floor_alpha", self.floor_alpha)
        _check_choice("reduction_type", self.reduction_type, get_args(Reduction))
        quantization: Any = self.kv_quantization
        if isinstance(quantization, dict):  # the saved form
            object.__setattr__(self, "kv_quantization", KVQuantization(**quantization))
        if not isinstance(self.kv_quantization, KVQuantization):
            _check_choice("kv_quantization", self.kv_quantization, ("int8", "int4", None))
        if self.kv_quantization is not None and self.head_budgets == "adaptive":
            raise ValueError(
                "kv_quantization must be None with head_budgets='adaptive', whose heads keep different numbers of "
                f"pairs; got {self.kv_quantization!r}"
            )
        for name, switch, value in (
            ("floor_alpha", "head_budgets", "adaptive"),
            ("prefill_window_size", "prefill", "sparse"),
            ("prefill_vertical_size", "prefill", "sparse"),
        ):
            if name in _changed_fields(self) and getattr(self, switch) != value:
                raise ValueError(
                    f"{name} has no effect with {switch}={getattr(self, switch)!r}: set {switch}={value!r} or leave "
                    f"{name} out; got {getattr(self, name)!r}"
                )

    def resolved_quantization(self) -> KVQuantization | None:
        """The storage format in use, with the names "int8" and "int4" expanded."""
        if self.kv_quantization is None or isinstance(self.kv_quantization, KVQuantization):
            return self.kv_quantization
        return KVQuantization(bits=8 if self.kv_quantization == "int8" else 4)

    def resolved_window(self) -> int:
        """The window in use: `window_size`, or its default."""
        default = min(32 if self.lookahead_tokens == 0 else 8, self.max_capacity_prompt)
        return default if self.window_size is None else self.window_size

    def resolved_lookahead(self, max_new_tokens: int) -> int:
        """Number of lookahead tokens for `max_new_tokens` tokens to generate."""
        default = min(max_new_tokens, LOOKAHEAD_LIMIT)
        return default if self.lookahead_tokens is None else self.lookahead_tokens


@dataclass(frozen=True, kw_only=True)
class SpecKVPCConfig:
    """Settings of the cascade SpecKV-PC (paper section 4.3): SpecPC on the prompt, then SpecKV on the rest.

    One draft pass serves both: the tokens that the draft generates for SpecPC are SpecKV's lookahead. Their number is
    SpecPC's `lookahead_tokens`, or SpecKV's where that is None.

    Args:
        specpc_config: Prompt compression, to `max_capacity_prompt` tokens; or a dict of its fields.
        speckv_config: KV eviction, to `max_capacity_prompt` pairs per layer and KV head; or a dict of its fields.

    Raises:
        ValueError: names the field, the value and the limit.
    """

    specpc_config: SpecPCConfig = field(default_factory=SpecPCConfig)
    speckv_config: SpecKVConfig = field(default_factory=SpecKVConfig)

    def __post_init__(self) -> None:
        for name, kind in (("specpc_config", SpecPCConfig), ("speckv_config", SpecKVConfig)):
            value: Any = getattr(self, name)
            if isinstance(value, dict):  # the saved form
                value = kind(**value)
                object.__setattr__(self, name, value)
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}; got {type(value).__name__}")

    def resolved_lookahead(self, max_new_tokens: int) -> int:
        """Number of lookahead tokens for `max_new_tokens` tokens to generate."""
        if self.specpc_config.lookahead_tokens is not None:
            return self.specpc_config.lookahead_tokens
        return self.speckv_config.resolved_lookahead(max_new_tokens)


MethodConfig = SpecKVConfig | SpecKVPCConfig | SpecPCConfig
