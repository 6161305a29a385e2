"""A RAG query engine: retrieve, compress, answer."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine

from ..chat.answering import rag_prompt
from .llm import SpecKVLLM
from .postprocessor import SpecPCPostprocessor


def rag_query_engine(
    retriever: BaseRetriever,
    llm: LLM,
    compressor: BaseNodePostprocessor | None = None,
    *,
    prompt: BasePromptTemplate | None = None,
    **options: Any,
) -> RetrieverQueryEngine:
    """Build a query engine that answers questions from retrieved, compressed nodes.

        llm = SpecKVLLM("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct")
        engine = rag_query_engine(index.as_retriever(similarity_top_k=12), llm)
        print(engine.query("In which year was the bridge opened?"))

    Args:
        retriever: Finds nodes. Let it return many; the compressor shortens them.
        llm: Any LLM.
        compressor: None: a `SpecPCPostprocessor` with the draft of a `SpecKVLLM`, else with the default draft.
        prompt: A template with the variables "context_str" (the nodes' text) and "query_str".
        **options: Further arguments of `RetrieverQueryEngine.from_args`, such as `streaming=True` or `response_mode`.
            `node_postprocessors` run before the compressor.
    """
    if compressor is None:
        compressor = SpecPCPostprocessor(llm.draft_spec) if isinstance(llm, SpecKVLLM) else SpecPCPostprocessor()
    return RetrieverQueryEngine.from_args(
        retriever,
        llm=llm,
        node_postprocessors=[*(options.pop("node_postprocessors", None) or ()), compressor],
        text_qa_template=prompt or PromptTemplate(rag_prompt(["{context_str}"], "{query_str}")),
        **options,
    )
