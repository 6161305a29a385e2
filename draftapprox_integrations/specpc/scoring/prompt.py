"""The draft's prompt: its chat template around the numbered passages and the query.

Template text is encoded with special tokens, passages and query without: a passage that contains "<|im_end|>" cannot
end the turn. Each passage is encoded alone, so its character offsets stay its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from ...errors import InvalidInputError
from ...models.loading import LoadedModel
from ...models.tokenization import Encoded, TextEncoder
from .template_date import fixed_date_template

INSTRUCTION = "Answer the question using these passages."
_CONTEXT, _QUERY = "[[draftapprox-context]]", "[[draftapprox-query]]"


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of passage `passage`: all of it, or a part if it exceeds the context window."""

    passage: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class Prompt:
    """One prompt for the draft.

    Attributes:
        ids: Token ids of the whole prompt.
        window: Number of tokens after the passages: the query and the template's tail.
        positions: Each segment with the index in `ids` of its first token.
    """

    ids: list[int]
    window: int
    positions: list[tuple[Segment, int]]


class PromptBuilder:
    """Builds prompts for one draft model.

    Raises:
        InvalidInputError: the model has no (fast) tokenizer, or its chat template drops a part of the message.
    """

    def __init__(self, draft: LoadedModel):
        self._draft = draft
        tokenizer = draft.require_tokenizer()
        self.encoder = TextEncoder(tokenizer)
        content = f"{INSTRUCTION}\n\n{_CONTEXT}Question: {_QUERY}"
        if tokenizer.chat_template:
            try:
                rendered = str(
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": content}],
                        chat_template=fixed_date_template(tokenizer),
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                )
            except TemplateError as error:
                raise InvalidInputError(f"the chat template of {draft.name} failed: {error}") from error
        else:  # a base model: plain text, with BOS if its tokenizer adds one
            rendered = f"{_begin_text(draft)}{content}\nAnswer:"
        head, found, rest = rendered.partition(_CONTEXT)
        middle, found_query, tail = rest.partition(_QUERY)
        if not found or not found_query:
            raise InvalidInputError(f"the chat template of {draft.name} changes the user's message")
        self._head, self._middle, self._tail = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (head, middle, tail)
        )
        (self._gap,) = (encoded.ids for encoded in self.encoder.encode(["\n\n"]))

    @property
    def head(self) -> list[int]:
        """Ids before the passages."""
        return list(self._head)

    def query(self, query: str) -> list[int]:
        """Ids of the query."""
        (encoded,) = self.encoder.encode([query.strip()])
        return encoded.ids

    def tail(self, query: str) -> list[int]:
        """Ids after the passages."""
        return [*self._middle, *self.query(query), *self._tail]

    def headers(self, titles: Sequence[str | None], *, numbered: bool = True) -> list[list[int]]:
        """Ids of the line before each passage: its number and its title, if any.

        Args:
            titles: Per passage a title or None.
            numbered: False gives every passage the number 1, for passages that are read alone.
        """
        numbers = range(1, len(titles) + 1) if numbered else [1] * len(titles)
        lines = [f"[{n}] {title.strip()}\n" if title else f"[{n}] " for n, title in zip(numbers, titles, strict=True)]
        return [encoded.ids for encoded in self.encoder.encode(lines)]

    def build(self, passages: Sequence[Encoded], headers: Sequence[list[int]], query: str) -> list[Prompt]:
        """Prompts that together contain every passage token once, each within the draft's context window.

        One prompt if everything fits; else groups of about equal size, so that scores stay comparable.

        Raises:
            InvalidInputError: the query alone fills the window.
        """
        tail = self.tail(query)
        lengths = [len(p.ids) + len(h) + len(self._gap) for p, h in zip(passages, headers, strict=True)]
        overhead = max((len(h) for h in headers), default=0) + len(self._gap)
        room = self._draft.context_window - len(self._head) - len(tail)
        if room <= 2 * overhead:
            raise InvalidInputError(
                f"the query takes {len(tail)} tokens of the {self._draft.context_window} that {self._draft.name} "
                "can read. Shorten it, or use a draft with a longer context window."
            )
        return [self._assemble(group, passages, headers, tail) for group in _groups(passages, lengths, overhead, room)]

    def _assemble(
        self, group: list[Segment], passages: Sequence[Encoded], headers: Sequence[list[int]], tail: list[int]
    ) -> Prompt:
        ids = list(self._head)
        positions = []
        for segment in group:
            ids += headers[segment.passage]
            positions.append((segment, len(ids)))
            ids += passages[segment.passage].ids[segment.start : segment.stop]
            ids += self._gap
        return Prompt([*ids, *tail], len(tail), positions)


def _groups(passages: Sequence[Encoded], lengths: list[int], overhead: int, room: int) -> list[list[Segment]]:
    """Divide the passages into groups, in order; one that exceeds its group continues in the next."""
    total = sum(lengths)
    count = -(-total // room)
    # Splitting passages adds headers; aim a little below an equal share of the room.
    share = room if count <= 1 else min(room, total // count + 2 * overhead)
    groups: list[list[Segment]] = [[]]
    free = share
    for index, passage in enumerate(passages):
        start = 0
        while start < len(passage.ids):
            left = len(passage.ids) - start
            if left + overhead > free and groups[-1] and (left + overhead <= share or free < share // 2):
                groups.append([])
                free = share
            take = min(left, free - overhead)
            groups[-1].append(Segment(index, start, start + take))
            free -= take + overhead
            start += take
    return [group for group in groups if group]


def _begin_text(draft: LoadedModel) -> str:
    tokenizer = draft.require_tokenizer()
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""
