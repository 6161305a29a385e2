"""Retrieve, compress, ask: one LlamaIndex query engine."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine

from ..chat.answering import rag_prompt
from .llm import SpecKVLLM
from .postprocessor import SpecPCPostprocessor


def rag_query_engine(
    retriever: BaseRetriever, llm: LLM, postprocessor: BaseNodePostprocessor | None = None, **options: Any
) -> RetrieverQueryEngine:
    """A query engine that answers from what a retriever finds.

        llm = SpecKVLLM("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct")
        engine = rag_query_engine(index.as_retriever(similarity_top_k=12), llm)
        print(engine.query("In which year was the bridge opened?"))

    Args:
        retriever: Finds nodes; let it find many, as the postprocessor makes them short.
        llm: Any LLM.
        postprocessor: None: a `SpecPCPostprocessor` with the draft of a `SpecKVLLM`, or with the default draft in front
            of another LLM.
        **options: Further arguments of `RetrieverQueryEngine.from_args`: `streaming=True`, `text_qa_template`,
            `response_mode`; `node_postprocessors` run before the compression.
    """
    if postprocessor is None and isinstance(llm, SpecKVLLM):
        postprocessor = SpecPCPostprocessor(llm.draft_spec)
    postprocessor = postprocessor or SpecPCPostprocessor()
    options.setdefault("text_qa_template", PromptTemplate(rag_prompt(["{context_str}"], "{query_str}")))
    before = options.pop("node_postprocessors", None) or []
    return RetrieverQueryEngine.from_args(retriever, llm=llm, node_postprocessors=[*before, postprocessor], **options)
