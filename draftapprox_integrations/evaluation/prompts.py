"""Shorten a benchmark's prompt as text: its first line and its question stay, SpecPC chooses from what lies between."""

from __future__ import annotations

from ..specpc.compressor import SpecPC
from ..specpc.text.segmentation import segment

_PASSAGE_WORDS = 150  # about what a retriever's chunk has


def shorten(compressor: SpecPC, prompt: str, max_tokens: int) -> str:
    """`prompt` in at most about `max_tokens` tokens; unchanged if it has no line between its first and its last.

    Args:
        compressor: Chooses the sentences, and counts the tokens.
        prompt: The prompt, without a chat template.
        max_tokens: Tokens to keep, those of the first and the last line included.
    """
    head, passages, query = split_prompt(prompt)
    if not passages:
        return prompt
    used = sum(compressor.count_tokens([head, query]))
    result = compressor.compress(passages, query, max_tokens=max(1, max_tokens - used))
    kept = "\n".join(passage.text for passage in result.passages if passage.text)
    return f"{head}\n{kept}\n{query}"


def split_prompt(prompt: str) -> tuple[str, list[str], str]:
    """A prompt's first line, passages made of what lies between, and its last line, the query.

    So it is in RULER and LongBench: the first line says what is to be done, and "Question: ..." stands last. Without a
    line between there are no passages.
    """
    lines = prompt.split("\n")
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if len(filled) < 3:
        return prompt, [], ""
    first, last = filled[0], filled[-1]
    return "\n".join(lines[: first + 1]), _passages(lines[first + 1 : last]), "\n".join(lines[last:])


def _passages(lines: list[str]) -> list[str]:
    """Neighbouring lines together, until they have about `_PASSAGE_WORDS` words; a longer line becomes several."""
    passages: list[str] = []
    words = 0
    for line in lines:
        pieces = [line]
        if len(line.split()) > _PASSAGE_WORDS:
            pieces = [one.text for one in segment([line])[0]]
        separator = "\n"
        for piece in pieces:
            count = len(piece.split())
            if not count:
                continue
            if passages and words + count <= _PASSAGE_WORDS:
                passages[-1] += separator + piece
                words += count
            else:
                passages.append(piece)
                words = count
            separator = " "
    return passages
