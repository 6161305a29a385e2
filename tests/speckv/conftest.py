"""Fixtures of the engine's tests."""

import pytest

from draftapprox_integrations import load_model

from ..conftest import tiny_llama


@pytest.fixture(scope="module")
def pair(tiny_tokenizer):
    """A target that never ends by itself, and a smaller draft with the same vocabulary."""
    target = tiny_llama(eos_token_id=None)
    target.generation_config.eos_token_id = None
    draft = tiny_llama(num_hidden_layers=2, hidden_size=32, head_dim=8)
    return load_model((target, tiny_tokenizer)), load_model((draft, tiny_tokenizer))
