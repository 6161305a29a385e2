"""rag_chain: retrieve, compress, ask."""

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever

from draftapprox_integrations import LoadedModel, SpecKV, SpecKVConfig, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import ChatSpecKV, SpecPCCompressor, rag_chain
from tests.helpers.serving import FLOAT32

DOCUMENTS = [
    Document("The old mill was built in 1821. Today it is a small museum. It closes in winter.", id="mill"),
    Document("The bridge was opened in 1932. It is painted red. Many cyclists cross it.", id="bridge"),
]
QUESTION = "In which year was the bridge opened?"


class Everything(BaseRetriever):
    def _get_relevant_documents(self, query: Any, *, run_manager: Any) -> Any:
        return DOCUMENTS


@pytest.fixture
def chain(smol: SpecPC) -> Any:
    chat = ChatSpecKV(smol.draft, config=SpecKVConfig(max_capacity_prompt=64), max_tokens=24)
    return rag_chain(Everything(), chat, SpecPCCompressor(smol, max_tokens=20))


async def test_the_answer_and_what_it_rests_on(chain: Any, smol: SpecPC) -> None:
    found = chain.invoke(QUESTION)
    assert set(found) == {"question", "context", "answer"}
    assert "1932" in found["answer"]
    assert [document.id for document in found["context"]] == ["bridge"]
    assert sum(smol.count_tokens([document.page_content for document in found["context"]])) <= 20
    assert await chain.ainvoke({"question": QUESTION}) == found
    assert chain.batch([QUESTION, QUESTION]) == [found, found]
    pieces = list(chain.stream(QUESTION))
    assert sum("answer" in piece for piece in pieces) > 3
    assert "".join(piece.get("answer", "") for piece in pieces) == found["answer"]
    # LangChain's `assign` passes an earlier value of the same key on: the last one counts
    assert [piece["context"] for piece in pieces if "context" in piece][-1] == found["context"]


def test_another_prompt_with_more_variables(smol: SpecPC) -> None:
    chat = ChatSpecKV(smol.draft, max_tokens=24)
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in {language}."), ("user", "{context}\n{question}")])
    seen = []

    class Watcher(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            seen.extend(messages[0])

    rag_chain(Everything(), chat, prompt=prompt).invoke(
        {"question": QUESTION, "language": "French"}, {"callbacks": [Watcher()]}
    )
    assert seen[0].content == "Answer in French."
    assert seen[1].content.endswith(QUESTION)
    assert "opened in 1932" in seen[1].content


def test_the_draft_of_the_chat_model_reads_the_documents(tiny: LoadedModel, smol: SpecPC) -> None:
    for chat in (
        ChatSpecKV(tiny, draft=smol.draft), ChatSpecKV(smol.draft), ChatSpecKV(SpecKV(tiny, smol.draft)),
        ChatSpecKV(smol.draft, method="full"),
    ):  # fmt: skip
        assert SpecPCCompressor(chat.draft_spec).load().draft is smol.draft


def test_models_loaded_in_another_way_are_shared_too(smol: SpecPC) -> None:
    chat = ChatSpecKV("default", loading=FLOAT32)
    assert SpecPCCompressor(chat.draft_spec).load().draft is chat.load().target
    assert chat.load().target is not smol.draft or str(smol.draft.dtype) == "torch.float32"


@pytest.mark.parametrize("given", ["", "  ", {"query": "x"}, {"question": None}, 3])
def test_no_question(chain: Any, given: Any) -> None:
    with pytest.raises(InvalidInputError, match='give a question, or {"question": ...}'):
        chain.invoke(given)
