"""Tell context from question in the text of one user message.

Marks decide, in this order; the first kind that is found is used alone:

1. Tags: `<context>...</context>`, `<documents>`, `<search_results>` and the like, opened at the start of a line.
2. Fences: two equal lines of dashes (or = or _) after a line such as "Context information is below.", as in
   LlamaIndex's default prompts. With more such lines it is not clear which belong together, and all is left alone.
3. A heading such as "Context:", up to "Question:", up to a closing "Answer:", else up to the last paragraph.
4. One line "Question:" after an instruction such as "Use the following pieces of context": all between the two. Without
   such an instruction: long paragraphs between the first one and that line.
5. Only if asked for: long paragraphs of a text whose first or last paragraph asks a question, but not these two.

Whatever is not marked stays as it is: instructions, questions, examples, and everything where marks are ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..results import Span
from ..specpc.text.sentences import strip

LONG_CHARACTERS = 400  # of a paragraph without marks that may be context
_HEADING_CHARACTERS = 200  # a shorter paragraph belongs to the next one, as its heading
_QUERY_CHARACTERS = 2000  # of a question; more is instructions
_NAME_CHARACTERS = 200  # of a title or source inside a document
_LINES_CHARACTERS = 600  # of the lines before a fence

_BLOCKS = (
    "contexts?|documents?|docs?|passages?|sources?|chunks?|excerpts?|search_results?|retrieved_(?:context|documents)|"
    "document_contents?|page_content"
)
_NAMES = "title|source|url|metadata|id|index|score"
_TAG = re.compile(rf"<(?P<close>/?)(?P<name>{_BLOCKS}|{_NAMES})\b[^<>]{{0,400}}>", re.IGNORECASE)
_IS_BLOCK, _IS_NAME = re.compile(_BLOCKS), re.compile(_NAMES)

_MARK = r"^[#*> \t]{0,20}"  # of Markdown
_FENCE = re.compile(r"^(?P<fence>-{5,}|={5,}|_{5,})[ \t]*$", re.MULTILINE)
_TEXTS = r"(?:contexts?|documents?|passages?|sources?|excerpts?|search results)"
_WHAT = (
    r"(?:(?:retrieved|relevant|additional|new)[ \t])?(?:contexts?|documents|passages|sources|excerpts|search results)"
)
_HEADING = re.compile(
    rf"{_MARK}(?:{_WHAT}(?: information)?[ \t*]{{0,4}}:[ \t*]*|(?<=#)[ \t]*{_WHAT}[ \t*]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_QUESTION = re.compile(
    rf"{_MARK}(?:(?:my|the)[ \t])?(?:(?:user|user's|original|follow[- ]?up)[ \t])?(?:question|query)\b"
    r"(?P<one_line> is(?: as follows)?)?[ \t*]{0,4}(?::[ \t*]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_QUESTION_INSIDE = re.compile(r"\b(?:question|query)\b(?P<one_line>)[ \t]?:[ \t]*", re.IGNORECASE)
_ANSWER = re.compile(rf"{_MARK}(?:[\w']{{1,20}}[ \t])?(?:answer|response)[ \t*]{{0,4}}:", re.IGNORECASE | re.MULTILINE)
_ANNOUNCES = re.compile(
    rf"\b(?:following|below|given|provided|retrieved)\b[^.\n]{{0,60}}\b{_TEXTS}\b|"
    rf"\b{_TEXTS}\b[^.\n]{{0,60}}\b(?:below|follows?|provided)\b",
    re.IGNORECASE,
)
_INSTRUCTS = re.compile(
    r"(?:given|using|use|based on|answer|please|now|respond|reply|if|do not|don't|only|return|write|provide)\b"
    r"[^\n]{0,200}\b(?:answer|question|query|context|above|know)\b",
    re.IGNORECASE,
)
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")


@dataclass(frozen=True)
class UserText:
    """A user's text, read.

    Attributes:
        contexts: Character spans of context, ascending and disjoint.
        question: The question, for use as a query; "" if all is context. At most 2,000 characters.
    """

    contexts: list[Span]
    question: str


def read_user_text(text: str, *, unmarked: bool = False) -> UserText:
    """Find context and question in a text.

    Args:
        text: The text of a user message, or a prompt.
        unmarked: Whether long paragraphs without any mark may be context.
    """
    blocks, inside = _in_tags(text)
    if contexts := _stripped(text, inside):
        return UserText(contexts, _question_in(text, blocks))
    rules = [_in_fences, _under_heading, _before_question, *([_in_long_paragraphs] if unmarked else [])]
    for rule in rules:
        spans = rule(text)
        if spans is None:
            break
        if contexts := _stripped(text, spans):
            return UserText(contexts, _question_in(text, contexts))
    return UserText([], _question_in(text, []))


def paragraphs(text: str, start: int, end: int) -> list[Span]:
    """Spans of the paragraphs of text[start:end]; a short one, such as a heading, is part of the next."""
    spans: list[Span] = []
    for first, last in _paragraphs(text, start, end):
        if spans and spans[-1][1] - spans[-1][0] < _HEADING_CHARACTERS:
            spans[-1] = (spans[-1][0], last)
        else:
            spans.append((first, last))
    return spans


def _paragraphs(text: str, start: int, end: int) -> Iterator[Span]:
    for gap in _BLANK_LINES.finditer(text, start, end):
        if start < gap.start():
            yield start, gap.start()
        start = gap.end()
    if start < end:
        yield start, end


def _stripped(text: str, spans: list[Span]) -> list[Span]:
    found = [strip(text, start, end) for start, end in spans]
    return [(start, end) for start, end in found if start < end]


def _in_tags(text: str) -> tuple[list[Span], list[Span]]:
    """Blocks in documents' tags, and the text in them without tags, titles and sources."""
    blocks: list[Span] = []
    found: list[Span] = []
    pending: list[Span] = []  # of a block that is still open
    opened, depth, begin, position, name = "", 0, 0, 0, False
    for tag in _TAG.finditer(text):
        kind, closes = tag["name"].lower(), bool(tag["close"])
        if not opened:
            if not closes and _IS_BLOCK.fullmatch(kind) and _starts_line(text, tag.start()):
                opened, depth, begin, position, pending, name = kind, 1, tag.start(), tag.end(), [], False
            continue
        if not (name and tag.start() - position <= _NAME_CHARACTERS):
            pending.append((position, tag.start()))
        position, name = tag.end(), bool(_IS_NAME.fullmatch(kind)) and not closes
        if kind == opened:
            depth += -1 if closes else 1
        if depth == 0:
            found += pending
            blocks.append((begin, tag.end()))
            opened = ""
    return blocks, found


def _starts_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", max(0, position - 40), position) + 1 : position].strip() if position else True


def _in_fences(text: str) -> list[Span] | None:
    """What two equal fences enclose of which the first is announced as context; None if there are more."""
    fences = list(_FENCE.finditer(text))
    for fence in fences:
        before = text[max(0, fence.start() - _LINES_CHARACTERS) : fence.start()].rstrip().splitlines()[-2:]
        if _ANNOUNCES.search("\n".join(before)) or _HEADING.fullmatch("".join(before[-1:])):
            equal = [other for other in fences if other["fence"] == fence["fence"]]
            return [(fence.end(), equal[1].start())] if equal[0] is fence and len(equal) == 2 else None
    return []


def _under_heading(text: str) -> list[Span]:
    """What stands under a heading such as "Context:"; where examples come first, under the last one."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        return []
    labels = [label for kind in (_QUESTION, _ANSWER) for label in kind.finditer(text, 0, headings[-1].start())]
    after = max((label.end() for label in labels), default=0)
    start = next(heading.end() for heading in headings if heading.start() >= after)
    question = _QUESTION.search(text, start)
    if question:
        return _without_instruction(text, list(_paragraphs(text, start, question.start())))
    end = _start_of_closing_answer(text, start)
    if end < len(text) and _QUESTION.search(text, 0, start):
        return [(start, end)]
    inside = list(_paragraphs(text, start, end))[:-1]  # the last one may ask
    return [(start, inside[-1][1])] if inside else []


def _start_of_closing_answer(text: str, start: int) -> int:
    """Where "Answer:" at the end of the text begins, the end of the text without it."""
    labels = list(_ANSWER.finditer(text, start))
    if labels and not text[labels[-1].end() :].strip():
        return labels[-1].start()
    return len(text)


def _before_question(text: str) -> list[Span]:
    """What stands between the first paragraph and the only line "Question:"; with several, some are examples."""
    questions = list(_QUESTION.finditer(text))
    if len(questions) != 1:
        return []
    (question,) = questions
    spans = list(_paragraphs(text, 0, question.start()))
    if len(spans) < 2:
        return []
    if _ANNOUNCES.search(text, *spans[0]):
        return _without_instruction(text, spans[1:])
    return _long(text, spans[1:])


def _without_instruction(text: str, spans: list[Span]) -> list[Span]:
    """From the first paragraph to the last one that does not say what to do before the question."""
    if len(spans) > 1 and _INSTRUCTS.match(text, *spans[-1]):
        spans = spans[:-1]
    return [(spans[0][0], spans[-1][1])] if spans else []


def _in_long_paragraphs(text: str) -> list[Span]:
    """Long paragraphs between a first and a last one of which one asks."""
    spans = list(_paragraphs(text, 0, len(text)))
    if len(spans) < 3 or not any(set(text[start:end]) & set("?\uff1f\u061f") for start, end in (spans[0], spans[-1])):
        return []
    return _long(text, spans[1:-1])


def _long(text: str, spans: list[Span]) -> list[Span]:
    if "```" in text:
        return []  # code, which may be what the question is about
    return [(start, end) for start, end in spans if end - start >= LONG_CHARACTERS]


def _question_in(text: str, hidden: list[Span]) -> str:
    """The question: what follows the last label "Question:", else all that is not hidden."""
    borders = [0, *(border for span in hidden for border in span), len(text)]
    outside = "\n".join(
        part for part in (text[a:b].strip() for a, b in zip(borders[::2], borders[1::2], strict=True)) if part
    )
    if hidden:
        outside = _HEADING.sub("", outside).strip()
        labels = list(_QUESTION.finditer(outside)) or list(_QUESTION_INSIDE.finditer(outside))
        if labels:
            after = outside[labels[-1].end() :].strip()
            ends = [end.start() for kind in (_ANSWER, _FENCE) if (end := kind.search(after))]
            labelled = after[: min(ends)] if ends else after
            if labels[-1]["one_line"]:
                labelled = labelled.partition("\n")[0]
            outside = labelled.strip() or outside
    half = _QUERY_CHARACTERS // 2
    return outside if len(outside) <= _QUERY_CHARACTERS else f"{outside[: half - 1]}\n{outside[-half:]}"
