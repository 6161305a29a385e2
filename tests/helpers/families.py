"""Families of transformers' causal language models: a tiny random model of each, and the expected outcome.

python -m tests.helpers.families NAME ...       run the checks on families and print the outcomes
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TABLE = Path(__file__).with_name("families.toml")
PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
METHODS = {
    "specpc": "SpecPC", "chunks": "chunked", "speckv": "SpecKV", "adaptive": "adaptive", "speckvpc": "SpecKV-PC",
}  # fmt: skip
INSTALLED = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

VOCABULARY = 128
LIMIT = 7_000_000  # parameters; protects the memory from families whose sizes are not known yet
# Sizes that make any config tiny, by field name. Fields that a config lacks are skipped. Thresholds (windows, chunks,
# numbers of selected keys) are well below the 40 tokens of the tests' prompts, so that they have an effect.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "query_pre_attn_scalar", "rotary_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "n_inner", "dff"), 48),
    **dict.fromkeys(("dim_ff", "d_inner", "ffn_hidden_size", "dense_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 256),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "max_window_layers"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "local_attention", "attention_window_size"), 12),
    **dict.fromkeys(("attention_chunk_size", "q_lora_rank", "kv_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "index_topk"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_n_heads", "mamba_d_head", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim", "mamba_chunk_size", "chunk_size", "output_proj_dims"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "keep_window_size", "log_scaling_n_floor"), 8),
    **dict.fromkeys(("num_mtp_layers", "num_nextn_predict_layers"), 0),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), None),
    "index_n_heads": 2, "index_block_size": 4, "index_topk_blocks": 2,
    "mamba_d_ssm": 64, "original_max_position_embeddings": 256, "mm_embed_dim": 32, "mm_posemb_size": 16,
    "patch_size": 4,
}  # fmt: skip

_CONVS = {"layer_types": ["conv", "full_attention"] * 2}
_RECURRENT = {"layer_types": ["linear_attention", "full_attention"] * 2}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_ROBERTA = {"pad_token_id": 1}
_SWA = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "rel_extent": 32, "d_rel": 8}
_DOTS = {f"swa_{name}": SIZES[name] for name in ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim")}
# Exceptions from these sizes. Keys are model types, also of the parts of a composite config.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": _SLIDING | {"rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}},
    "cwm": {"bos_token_id": 0, "eos_token_id": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v4": {"num_key_value_heads": 1, "o_lora_rank": 8, "o_groups": 2, "sliding_window": 12},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_text": _DOTS | {"swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8,
                                "head_dim": 16},
    "dots3_note_vision_encoder": {"pyramid_num_routed": [-1, -1, 4, 4], "adapter_in_dim": 32, "adapter_out_dim": 32},
    "emu3_text_model": {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_text": {"num_kv_shared_layers": 2, "pad_token_id": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 2, "pad_token_id": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _RECURRENT,
    "inkling2_text": _SWA | {"unpadded_vocab_size": VOCABULARY},
    "inkling_text": _SWA,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _RECURRENT,
    "lfm2": _CONVS,
    "lfm2_moe": _CONVS,
    "lfm3": _CONVS,
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": _SLIDING,
    "ministral3": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
    "mllama_text_model": {"bos_token_id": 0},
    "modernbert-decoder": {f"{kind}_token_id": 0 for kind in ("pad", "bos", "eos", "cls", "sep")},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 4, "hc_lowrank": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16)},
    "roc_bert": {"pronunciation_embed_dim": 8, "pronunciation_vocab_size": 16, "shape_embed_dim": 8,
                 "shape_vocab_size": 16},
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"), _ROBERTA),
    **dict.fromkeys(("xlm-roberta-xl", "xmod"), _ROBERTA),
}  # fmt: skip


# ---------------------------------------------------------------- what is expected


@dataclasses.dataclass(frozen=True)
class Group:
    """Families with one outcome: a group of tests/helpers/families.toml.

    Attributes:
        title: The outcome, in words.
        why: The reason, in words.
        refused: Check -> regular expression for the error message; "all" for all checks.
        families: Name -> examples. A name is a model type, with "+..." for other settings of it.
        settings: Name -> config fields that differ.
        tried: False if no tiny model can be made.
    """

    title: str
    why: str
    refused: dict[str, str]
    families: dict[str, str]
    settings: dict[str, dict[str, Any]]
    tried: bool

    def reason(self, method: str) -> str | None:
        """Regular expression for the refusal; None if the method works."""
        requires = {"chunks": ("specpc",), "adaptive": ("speckv",), "speckvpc": ("speckv", "specpc")}
        patterns = [self.refused.get(each) for each in (method, *requires.get(method, ()), "all")]
        return next(filter(None, patterns), None)


@lru_cache
def groups() -> list[Group]:
    """Groups of the table."""
    result = []
    for group in tomllib.loads(TABLE.read_text())["group"]:
        named = dict.fromkeys(group.get("others", []), "") | group.get("families", {})
        entries = {name: e if isinstance(e, dict) else {"models": e} for name, e in sorted(named.items())}
        models = {name: entry["models"] for name, entry in entries.items()}
        settings = {name: entry.get("settings", {}) for name, entry in entries.items()}
        refused, tried = group.get("refused", {}), group.get("tried", True)
        result.append(Group(group["title"], group.get("why", ""), refused, models, settings, tried))
    return result


def page() -> str:
    """Text of docs/families.md."""
    head = " | ".join(METHODS.values())
    lines = [_HEAD, f"| | Families | {head} |", "|---|---|" + "---|" * len(METHODS)]
    for group in groups():
        marks = ["yes" if group.reason(method) is None else "no" for method in METHODS] if group.tried else ["?"] * 5
        number = _number(group) or "a setting"
        lines.append(f"| [{group.title}](#{_anchor(group.title)}) | {number} | {' | '.join(marks)} |")
    lines += ["", summary()]
    for group in groups():
        named = [f"`{name}`" + (f" ({models})" if models else "") for name, models in group.families.items()]
        lines += ["", f"## {group.title} {{#{_anchor(group.title)}}}", "", *([group.why, ""] if group.why else [])]
        lines.append(", ".join(named) + ".")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """Summary sentence, also on the status page."""
    tried = [group for group in groups() if group.tried]
    specpc, speckv, both = (
        sum(_number(group) for group in tried if group.reason(method) is None)
        for method in ("specpc", "speckv", "speckvpc")
    )
    total, untried = sum(map(_number, groups())), sum(_number(group) for group in groups() if not group.tried)
    return (
        f"Of {total} families {specpc} can draft for SpecPC, {speckv} can be SpecKV's target, {both} both; "
        f"{untried} are not tried, all others are refused."
    )


def _number(group: Group) -> int:
    return sum("+" not in name for name in group.families)


def _anchor(title: str) -> str:
    return re.sub("[^a-z]+", "-", title.lower()).strip("-")


_HEAD = """# Model families

Which causal language models of transformers are supported. There is no list of names in the code: a model's behaviour
is checked while it runs, and a model that cannot be computed exactly is refused with an `UnsupportedModelError`. A
test writes this page from a tiny random model of every family. "yes" means equal numbers, within 1e-4: to eager
attention (SpecPC), and to a full cache masked to the kept pairs (SpecKV), for rows of different lengths in one batch.
"no" means refused, for the reason given. `make families` runs the test and writes this page.

A family is the `model_type` in a model's `config.json`; a suffix after a plus is a variant with other settings.

- **SpecPC**: it can be the draft; any model can be the target. **Chunked**: with `prefill_chunk_size`.
- **SpecKV**: it can be the target; any model that generates can be the draft. **Adaptive**: with
  `head_budgets="adaptive"`.
- **SpecKV-PC**: it can be both.
"""


# ---------------------------------------------------------------- tiny models


def tiny_model(name: str) -> PreTrainedModel:
    """Make the random model of a family, the same each time."""
    settings = next((group.settings[name] for group in groups() if name in group.families), {})
    config = _shrink(CONFIG_MAPPING[name.split("+")[0]], settings)
    make: Any = AutoModelForCausalLM.from_config
    if config.model_type.startswith("musicgen"):  # its class takes only this part
        model_classes: Any = AutoModelForCausalLM._model_mapping
        make, config = model_classes[type(config)]._from_config, config.decoder
    with torch.device("meta"):
        parameters = dict(make(config).named_parameters())
    if sum(parameter.numel() for parameter in parameters.values()) > LIMIT:
        largest = sorted(parameters, key=lambda key: -parameters[key].numel())[:5]
        shapes = ", ".join(f"{key} {list(parameters[key].shape)}" for key in largest)
        raise ValueError(f"{name} is too large; its largest parameters: {shapes}. Add sizes to families.py")
    torch.manual_seed(0)
    model = make(config)
    with torch.no_grad():
        for parameter in model.parameters():  # also those initialized to zero: sinks, biases, gates
            if parameter.is_floating_point():
                parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _shrink(kind: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    settings = EXCEPTIONS.get(kind.model_type, {}) | settings
    values = {name: size for name, size in SIZES.items() if name in fields}
    for name, field in fields.items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(field.default, int) and field.default > 0:
            values.setdefault(name, VOCABULARY - 1)
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        values["num_key_value_heads"] = 4
    kinds = _layer_types(kind)
    if "layer_types" in fields and len(kinds) > 1:
        values["layer_types"] = (kinds * 4)[:4]
    windows = any("sliding" in layer for layer in [*kinds, *settings.get("layer_types", [])])
    if "sliding_window" in values and not windows and "None" in str(fields["sliding_window"].type):
        values["sliding_window"] = None
    parts = _parts(kind)
    values |= {name: _shrink(part, settings.get(name, {})) for name, part in parts.items()}
    return kind(**(values | {name: value for name, value in settings.items() if name not in parts}))


def _layer_types(kind: type[PreTrainedConfig]) -> list[str]:
    try:
        return list(dict.fromkeys(getattr(kind(), "layer_types", None) or []))
    except Exception:  # not every config can be made from its defaults
        return []


def _parts(kind: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """Configs inside a composite config."""
    result = {}
    specs = getattr(kind, "sub_configs_defaults", {})
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if part.__name__ == "AutoConfig":
            part = CONFIG_MAPPING[specs[name].model_type] if name in specs and specs[name].model_type else None
        if part is not None:
            result[name] = part
    return result


# ---------------------------------------------------------------- command line


def main(names: list[str]) -> None:
    from tests.helpers.families_checks import CHECKS, outcome

    for name in names:
        for method in CHECKS:
            print(f"{name:24} {method:9} {outcome(name, method)}")  # noqa: T201


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
