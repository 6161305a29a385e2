import dataclasses
from typing import Any

import pytest

from draftapprox_integrations import CompressionConfig, SpecPCConfig


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("max_capacity_prompt", 0, ">= 1"),
        ("max_capacity_prompt", 1.5, "integer"),
        ("max_capacity_prompt", True, "integer"),
        ("window_size", 0, ">= 1"),
        ("window_size", 1025, "<= max_capacity_prompt (1024)"),
        ("kernel_size", 0, ">= 1"),
        ("neighbor_tokens", -1, ">= 0"),
        ("lookahead_tokens", 0, ">= 1"),
        ("starting_layer_index", -1, ">= 0"),
        ("prefill_chunk_size", 0, ">= 1"),
        ("pool_type", "sum", "'max', 'avg', 'mean', None"),
        ("reduction_type", None, "'max', 'mean'"),
        ("weighted_query", 1, "True or False"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_limit(
    field: str, value: float | bool | str | None, limit: str
) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        SpecPCConfig(**{field: value})
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)
    assert limit in str(caught.value)


def test_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpecPCConfig().kernel_size = 3
    with pytest.raises(TypeError):
        SpecPCConfig(1024)


def test_paper_settings_are_the_published_ones() -> None:
    llama = SpecPCConfig.paper("llama3")
    assert (llama.window_size, llama.kernel_size, llama.neighbor_tokens) == (64, 32, 32)
    qwen = SpecPCConfig.paper("qwen2.5", max_capacity_prompt=2048)
    assert (qwen.window_size, qwen.kernel_size, qwen.neighbor_tokens, qwen.max_capacity_prompt) == (64, 64, 64, 2048)
    for config in (llama, qwen):
        assert (config.pool_type, config.reduction_type, config.lookahead_tokens) == ("max", "max", 1)
        assert config.starting_layer_index == 8
        assert config.weighted_query
    with pytest.raises(ValueError, match=r"'llama3', 'qwen2.5'; got 'gpt2'"):
        SpecPCConfig.paper("gpt2")


def test_defaults_that_depend_on_the_model() -> None:
    assert SpecPCConfig().resolved_window() == 64
    assert SpecPCConfig(max_capacity_prompt=10).resolved_window() == 10
    assert [SpecPCConfig().resolved_start(layers) for layers in (1, 4, 16, 24, 30)] == [0, 2, 8, 8, 8]
    with pytest.raises(ValueError, match="starting_layer_index must be < 4.*got 8"):
        SpecPCConfig(starting_layer_index=8).resolved_start(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "page"}, "granularity must be one of 'token', 'word', 'sentence'; got 'page'"),
        ({"separator": 3}, "separator must be a string or None; got 3"),
        ({"keep_context": -1}, "keep_context must be .*>= 0; got -1"),
        ({"min_per_passage": 1.5}, "min_per_passage must be an integer >= 0; got 1.5"),
        ({"granularity": "word", "keep_context": 1}, "keep_context must be 0 with granularity='word'.*got 1"),
    ],
)
def test_bad_text_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressionConfig(**settings)


def test_the_separator_follows_the_granularity_unless_it_is_set() -> None:
    assert CompressionConfig().resolved_separator() == "\n"
    assert CompressionConfig(granularity="word").resolved_separator() == " "
    assert CompressionConfig(granularity="token").resolved_separator() == " "
    assert CompressionConfig(separator="").resolved_separator() == ""


def test_changed_names_what_differs_from_the_defaults() -> None:
    assert SpecPCConfig().changed() == []
    assert SpecPCConfig(kernel_size=3, window_size=8).changed() == ["window_size", "kernel_size"]
