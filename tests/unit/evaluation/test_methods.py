"""Methods by name, and prompts that are shortened as text."""

from typing import Any

import pytest

from draftapprox_integrations import LoadedModel, SpecKVConfig, SpecKVPCConfig, SpecPC, SpecPCConfig
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.evaluation.methods import METHODS, method_config, needs_draft
from draftapprox_integrations.evaluation.prompts import shorten


def test_flat_settings_make_each_method_s_config() -> None:
    assert method_config("full", {}, 100) == SpecKVConfig(max_capacity_prompt=100, lookahead_tokens=0)
    assert method_config("snapkv", {"max_capacity_prompt": 64}, 100).resolved_window() == 32
    assert method_config("speckv", {"kernel_size": 5}, 100) == SpecKVConfig(kernel_size=5)
    assert method_config("specpc", {"max_capacity_prompt": 64}, 100) == SpecPCConfig(max_capacity_prompt=64)
    expected = SpecKVPCConfig(
        specpc_config={"max_capacity_prompt": 80, "window_size": 8}, speckv_config={"max_capacity_prompt": 16}
    )
    flat = {"specpc_max_capacity_prompt": 80, "specpc_window_size": 8, "speckv_max_capacity_prompt": 16}
    parts = {"specpc_config": {"max_capacity_prompt": 80, "window_size": 8}, "speckv_max_capacity_prompt": 16}
    assert method_config("speckvpc", flat, 100) == method_config("speckvpc", parts, 100) == expected
    text = method_config("specpc-text", {"max_capacity_prompt": 64}, 100)
    assert text == method_config("full", {}, 100)
    drafted = [name for name in METHODS if needs_draft(name, method_config(name, {}, 100))]
    assert drafted == ["speckv", "specpc", "speckvpc", "specpc-text"]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("h2o", {}, "method must be one of full, snapkv"),
        ("full", {"max_capacity_prompt": 5}, "full has no setting max_capacity_prompt; it has none"),
        ("speckv", {"budget": 5}, "speckv has no setting budget; it has max_capacity_prompt"),
        ("speckv", {"max_capacity_prompt": 0}, "speckv: max_capacity_prompt must be an integer >= 1; got 0"),
        ("speckvpc", {"max_capacity_prompt": 5}, "it has specpc_max_capacity_prompt"),
        ("speckvpc", {"speckv_budget": 5}, "speckvpc has no setting budget"),
    ],
)
def test_what_is_wrong_is_named(method: str, settings: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        method_config(method, settings, 100)


def test_a_prompt_keeps_its_first_line_and_its_question(tiny: LoadedModel) -> None:
    engine = SpecPC(tiny)
    facts = [f"The mill number {i} was built in {1800 + i} by the river." for i in range(30)]
    prompt = "Read the text.\n\n" + "\n".join(facts) + "\n\nQuestion: When was mill number 7 built?"
    found = shorten(engine, prompt, 150)
    lines = found.split("\n")
    assert lines[0] == "Read the text."
    assert lines[-1] == "Question: When was mill number 7 built?"
    assert set(lines[1:-1]) <= set(facts)
    assert facts[7] in lines
    assert 100 < engine.count_tokens([found])[0] <= 156  # line breaks between the parts
    assert shorten(engine, prompt, 10**6).split("\n")[1:-1] == facts
    assert shorten(engine, "One line.\nAnother.", 5) == "One line.\nAnother."
    assert shorten(engine, "", 5) == ""
