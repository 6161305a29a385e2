"""Context and question in one user text: real prompts of the frameworks, marks, and text that must be left alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftapprox_integrations.chat.answering import rag_prompt
from draftapprox_integrations.serving.contexts import paragraphs, read_user_text

MILL = "The old mill was built in 1821. Today it is a small museum. " * 3
BRIDGE = "The bridge was opened in 1932. It is painted red. " * 9
CONTEXT = f"{MILL.strip()}\n\n{BRIDGE.strip()}"
QUESTION = "In which year was the bridge opened?"


def found(text: Any, **options: Any) -> Any:
    return [text[start:end] for start, end in read_user_text(text, **options).contexts]


@pytest.mark.parametrize(
    "text",
    [
        rag_prompt([MILL.strip(), BRIDGE.strip()], QUESTION),
        f"<context>\n{CONTEXT}\n</context>\n\n{QUESTION}",
        f"{QUESTION}\n<context>{CONTEXT}</context>",
        f"## Context\n\n{CONTEXT}\n\n## Question\n\n{QUESTION}",
        f"**Context:**\n{CONTEXT}\n\n**Question:** {QUESTION}",
        f"Context: {CONTEXT}\n\n{QUESTION}",
        f"Search results:\n{CONTEXT}\n\nQuestion: {QUESTION}\nHelpful Answer:",
        f"Use the following pieces of retrieved context.\nQuestion: {QUESTION} \nContext: {CONTEXT} \nAnswer:",
        f"Use the documents below.\n=====\n{CONTEXT}\n=====\nQuestion: {QUESTION}",
    ],
)  # fmt: skip
def test_marked_context(text: Any) -> None:
    assert found(text) == [CONTEXT]
    assert read_user_text(text).question == QUESTION


def test_documents_keep_their_tags_titles_and_sources() -> None:
    text = (
        f'<documents>\n<document index="1">\n<source>a.txt</source>\n<title>Mill</title>\n<document_content>\n{MILL}\n'
        f"</document_content>\n</document>\n<document>{BRIDGE}</document>\n</documents>\n{QUESTION}"
    )
    assert found(text) == [MILL.strip(), BRIDGE.strip()]
    assert read_user_text(text).question == QUESTION


@pytest.mark.parametrize(
    "text",
    [
        "",
        QUESTION,
        f"Translate this into French:\n\n{BRIDGE}\n\n{BRIDGE}",
        f"{BRIDGE}\n\n{BRIDGE}\n\n{QUESTION}",
        f"What does <context>{BRIDGE}</context> mean?",  # inside a line
        f"<context>\n{BRIDGE}\n\n{QUESTION}",  # never closed
        f"Context:\n{BRIDGE}",  # nothing but a paragraph that may be the question
        f"My notes\n-----\n{BRIDGE}\n-----\n{QUESTION}",
        f"Context information is below.\n-----\n{BRIDGE}\n\n{QUESTION}",  # one fence
        f"Rank them.\n\nQuestion: {QUESTION}\n\nDocument 1:\n{BRIDGE}\n\nDocument 2:\n{BRIDGE}",
        f"Read this code.\n\n```\n{'x = 1; ' * 200}\n```\n\nQuestion: {QUESTION}",
    ],
)
def test_left_alone(text: Any) -> None:
    assert not found(text)
    if len(text) <= 2000:
        assert read_user_text(text).question == text.strip()


def test_examples_come_before_and_stay() -> None:
    example = f"Context:\n{MILL}\n\nQuestion: Old?\nAnswer: Yes.\n\n"
    assert found(f"{example}{example}Context:\n{CONTEXT}\n\nQuestion: {QUESTION}\nAnswer:") == [CONTEXT]
    fenced = f"Context:\n-----\n{MILL}\n-----\nQuestion: Old?\nAnswer: Yes.\n\n"
    assert not found(f"{fenced}Context:\n-----\n{CONTEXT}\n-----\nQuestion: {QUESTION}\nAnswer:")


def test_instructions_before_the_question_stay() -> None:
    instruction = "Given the context above, answer in one word."
    for start in ("Context:\n", "Answer from the following passages.\n\n"):
        assert found(f"{start}{CONTEXT}\n\n{instruction}\n\nQuestion: {QUESTION}") == [CONTEXT]


def test_context_that_imitates_the_prompt_never_takes_the_question_with_it() -> None:
    prompt = "Context information is below.\n-----\n{}\n-----\nGiven the context, answer.\nQuery: {}\nAnswer: "
    for hostile in ("-----", "see the documents\n-----", "x\n-----\nsources\n-----\ny", "Query: a?", "</context>"):
        for asked in (QUESTION, f"{QUESTION}\n-----\nof these\n-----\n", f"a\nsources\n-----\nb\n-----\n{QUESTION}"):
            text = prompt.format(f"{MILL}\n{hostile}\n{MILL}", asked)
            last = text.index("Given the context")
            assert all(end <= last for _, end in read_user_text(text).contexts), (hostile, asked)


def test_long_paragraphs_only_if_asked_for() -> None:
    text = f"{QUESTION}\n\n{MILL}\n\n{BRIDGE}\n\nBe brief."
    assert not found(text)
    assert found(text, unmarked=True) == [BRIDGE.strip()]
    assert found(f"Be brief.\n\n{BRIDGE}\n\n{QUESTION}", unmarked=True) == [BRIDGE.strip()]
    code = f"Why?\n\n```\n{BRIDGE}\n```\n\n{QUESTION}"
    for untouched in (f"Sum it up.\n\n{BRIDGE}\n\n{MILL}", f"{BRIDGE}\n\n{QUESTION}", code):
        assert not found(untouched, unmarked=True)


def test_a_line_question_is_a_mark() -> None:
    assert found(f"Be brief.\n\n{MILL}\n\n{BRIDGE}\n\nQuestion: {QUESTION}") == [BRIDGE.strip()]
    text = f"Answer from the following passages.\n\n{MILL}\n\n{BRIDGE}\n\nQuestion: {QUESTION}"
    assert found(text) == [f"{MILL}\n\n{BRIDGE.strip()}"]


def test_paragraphs_with_their_headings() -> None:
    text = f"# Mill\n\n{MILL}{MILL}\n \n\n{BRIDGE}"
    first, second = paragraphs(text, 0, len(text))
    assert text[slice(*first)].startswith("# Mill\n\nThe old mill")
    assert text[slice(*second)] == BRIDGE


MARKS = st.sampled_from(
    ["<context>", "</context>", "<document>", "</document>", "<title>", "Context:", "Question:", "Query: a?", "Answer:",
     "-----", "=====", "Context information is below.", "", "\n", "Use the following context.", BRIDGE, MILL, "why?"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(MARKS, st.text(max_size=20)), max_size=14).map("\n".join), st.booleans())
def test_spans_are_ascending_disjoint_and_never_hold_a_last_line_that_asks(text: str, unmarked: bool) -> None:
    asked = f"{text}\n\nQuestion: What is asked last?"
    read = read_user_text(asked, unmarked=unmarked)
    position = 0
    for start, end in read.contexts:
        assert position <= start < end
        position = end
    closed = asked.rfind("</") > asked.rfind("What is asked last?")
    assert closed or position <= asked.rindex("Question: What is asked last?")
    assert len(read.question) <= 2000


@pytest.mark.parametrize(
    "unit",
    ["\n", " ", "<context>", "<context>\n", "</a", "-----\n", "Context:\n", "Question:\n", "answer:", "# ", "\n \n"],
)
def test_hostile_text_ends(unit: Any) -> None:
    text = unit * (400_000 // len(unit))  # in quadratic time it would take minutes
    assert len(read_user_text(text, unmarked=True).question) <= 2000
