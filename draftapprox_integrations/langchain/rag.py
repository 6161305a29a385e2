"""Retrieve, compress, ask: one LangChain Runnable."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from ..chat.answering import rag_prompt
from ..errors import InvalidInputError
from .base import LangChainSpecKVBase
from .compressor import SpecPCCompressor


def rag_chain(
    retriever: BaseRetriever,
    chat: BaseChatModel,
    compressor: BaseDocumentCompressor | None = None,
    *,
    prompt: BasePromptTemplate[Any] | None = None,
) -> Runnable[Any, dict[str, Any]]:
    """A Runnable that answers questions from what a retriever finds.

        chain = rag_chain(retriever, ChatSpecKV("Qwen/Qwen2.5-14B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct"))
        found = chain.invoke("In which year was the bridge opened?")
        found["answer"], found["context"]

    It takes a question, or `{"question": ...}` with whatever else `prompt` needs, and gives the same dict with
    "context", the compressed documents, and "answer", a text. `stream` gives dicts that add up to it: documents first,
    then the answer in pieces.

    Args:
        retriever: Finds documents; let it find many, as the compressor makes them short.
        chat: Any chat model.
        compressor: None: a `SpecPCCompressor` with the draft of a `ChatSpecKV`; with another chat model, one with the
            default draft.
        prompt: With the variables "context" (the documents' text) and "question".

    Raises:
        InvalidInputError: at use: no question.
    """
    if compressor is None and isinstance(chat, LangChainSpecKVBase):
        compressor = SpecPCCompressor(chat.draft_spec)
    compressor = compressor or SpecPCCompressor()
    template = prompt or ChatPromptTemplate.from_messages([("user", rag_prompt(["{context}"], "{question}"))])
    shorten = RunnableLambda(_shortened_by(compressor), _shortened_by_async(compressor))
    answer: Runnable[Any, str] = RunnableLambda(_with_text) | template | chat | StrOutputParser()
    return (
        RunnableLambda(_as_dict)
        | RunnablePassthrough.assign(context=itemgetter("question") | retriever)
        | RunnablePassthrough.assign(context=shorten)
        | RunnablePassthrough.assign(answer=answer)
    ).with_config(run_name="rag_chain")


def _as_dict(given: Any) -> dict[str, Any]:
    question = given if isinstance(given, str) else given.get("question") if isinstance(given, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise InvalidInputError(f'give a question, or {{"question": ...}}; got {given!r}')
    return {"question": given} if isinstance(given, str) else given


def _shortened_by(compressor: BaseDocumentCompressor) -> Any:
    def shorten(given: dict[str, Any], config: Any) -> list[Document]:
        return list(compressor.compress_documents(given["context"], given["question"], config.get("callbacks")))

    return shorten


def _shortened_by_async(compressor: BaseDocumentCompressor) -> Any:
    async def shorten(given: dict[str, Any], config: Any) -> list[Document]:
        return list(await compressor.acompress_documents(given["context"], given["question"], config.get("callbacks")))

    return shorten


def _with_text(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "context": "\n\n".join(document.page_content for document in given["context"])}
