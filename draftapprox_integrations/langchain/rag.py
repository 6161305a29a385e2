"""A RAG chain: retrieve, compress, answer."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnablePassthrough

from ..chat.answering import rag_prompt
from ..errors import InvalidInputError
from .base import LangChainSpecKVBase
from .compressor import SpecPCCompressor


def rag_chain(
    retriever: BaseRetriever,
    llm: BaseLanguageModel[Any],
    compressor: BaseDocumentCompressor | None = None,
    *,
    prompt: BasePromptTemplate[Any] | None = None,
) -> Runnable[Any, dict[str, Any]]:
    """Build a Runnable that answers questions from retrieved, compressed documents.

        chain = rag_chain(retriever, ChatSpecKV("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct"))
        found = chain.invoke("In which year was the bridge opened?")
        found["answer"], found["context"]

    The input is a question, or `{"question": ...}` with any further variables of `prompt`. The output is the same dict
    with "context", the compressed documents, and "answer", a text. `stream` yields dicts that add up to the output:
    documents first, then the answer in pieces.

    Args:
        retriever: Finds documents. Let it return many; the compressor shortens them.
        llm: Any chat model or LLM.
        compressor: None: a `SpecPCCompressor` with the draft of a `ChatSpecKV` or `SpecKVLLM`, else with the default
            draft.
        prompt: A template with the variables "context" (the documents' text) and "question".

    Raises:
        InvalidInputError: at use: the input has no question.
    """
    if compressor is None:
        compressor = SpecPCCompressor(llm.draft_spec) if isinstance(llm, LangChainSpecKVBase) else SpecPCCompressor()
    template = prompt or ChatPromptTemplate.from_messages([("user", rag_prompt(["{context}"], "{question}"))])
    answer: Runnable[Any, str] = RunnableLambda(_join_documents) | template | llm | StrOutputParser()
    return (
        RunnableLambda(_as_dict)
        | RunnablePassthrough.assign(context=itemgetter("question") | retriever)
        | RunnablePassthrough.assign(context=_compress_with(compressor))
        | RunnablePassthrough.assign(answer=answer)
    ).with_config(run_name="rag_chain")


def _as_dict(given: Any) -> dict[str, Any]:
    question = given if isinstance(given, str) else given.get("question") if isinstance(given, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise InvalidInputError(f'give a question, or {{"question": ...}}; got {given!r}')
    return {"question": given} if isinstance(given, str) else given


def _compress_with(compressor: BaseDocumentCompressor) -> Runnable[dict[str, Any], list[Document]]:
    """Return a Runnable that compresses the documents under "context" for the question."""

    def compress(given: dict[str, Any], config: RunnableConfig) -> list[Document]:
        return list(compressor.compress_documents(given["context"], given["question"], config.get("callbacks")))

    async def acompress(given: dict[str, Any], config: RunnableConfig) -> list[Document]:
        return list(await compressor.acompress_documents(given["context"], given["question"], config.get("callbacks")))

    return RunnableLambda(compress, acompress)


def _join_documents(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "context": "\n\n".join(document.page_content for document in given["context"])}
