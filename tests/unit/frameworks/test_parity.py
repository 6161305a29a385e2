"""Both frameworks' parts side by side: the same parameters, in the same order, with the same defaults."""

import inspect
from typing import Any

import pytest

from draftapprox_integrations import langchain, llama_index

RETRIEVAL = {
    "draft": "default",
    "max_tokens": None,
    "keep_ratio": None,
    "config": None,
    "compression": None,
    "scorer": "fused",
    "tokenizer": None,
    "embedder": None,
    "store": None,
    "on_empty": "drop",
    "on_error": "raise",
    "protect": (),
    "title_keys": ("title", "file_name", "source"),
    "metadata_key": "specpc",
}
LLM = {
    "model": "default",
    "draft": "self",
    "method": None,
    "config": None,
    "positions": "renumber",
    "max_tokens": 256,
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "seed": None,
    "stop": None,
    "timeout": None,
    "generate_kwargs": None,
    "max_batch_size": 8,
    "loading": None,
}


def parameters(part: Any) -> Any:
    """The part's own parameters with their defaults: what its constructor names."""
    found = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters
    named = {name: parameter.default for name, parameter in found.items() if name != "self"}
    return {name: default for name, default in named.items() if name not in ("fields", "options")}


def test_retrieval_parts() -> None:
    compressor, postprocessor = parameters(langchain.SpecPCCompressor), parameters(llama_index.SpecPCPostprocessor)
    assert list(compressor.items()) == list(postprocessor.items()) == list(RETRIEVAL.items())
    middleware = parameters(langchain.SpecPCMiddleware)
    alone = {"trigger_tokens": 0, "tools": None, "cache_size": 256}
    without_meaning = ("on_empty", "title_keys")  # a tool result has no metadata and always stays
    shared = {name: default for name, default in RETRIEVAL.items() if name not in without_meaning}
    assert list(middleware.items()) == list((shared | alone).items())


def test_llm_parts() -> None:
    for part in (langchain.ChatSpecKV, langchain.SpecKVLLM, llama_index.SpecKVLLM):
        assert list(parameters(part).items()) == list(LLM.items())


def test_rag_helpers() -> None:
    chain, engine = parameters(langchain.rag_chain), parameters(llama_index.rag_query_engine)
    assert list(chain) == list(engine) == ["retriever", "llm", "compressor", "prompt"]
    assert chain == engine


@pytest.mark.parametrize(
    ("part", "documented"),
    [
        (langchain.SpecPCCompressor, RETRIEVAL),
        (llama_index.SpecPCPostprocessor, RETRIEVAL),
        (langchain.ChatSpecKV, LLM),
        (langchain.SpecKVLLM, LLM),
        (llama_index.SpecKVLLM, LLM),
    ],
)
def test_help_shows_them_first_and_they_are_fields(part: Any, documented: Any) -> None:
    shown = list(inspect.signature(part).parameters)
    assert shown[: len(documented)] == list(documented)
    assert documented.keys() <= part.model_fields.keys()
    for name in shown:  # the frameworks' own fields are named too, none hides behind **fields
        assert name in part.model_fields
