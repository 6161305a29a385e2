"""Shorten a benchmark's prompt as text: its first line and its question stay, SpecPC chooses from what lies between."""

from __future__ import annotations

from ..specpc.compressor import SpecPC

_PASSAGE_WORDS = 150  # about what a retriever's chunk has


def shorten(compressor: SpecPC, prompt: str, max_tokens: int) -> str:
    """`prompt` in at most about `max_tokens` tokens; unchanged if it has no line between its first and its last.

    The last line is the query, as in RULER and LongBench: "Question: ..." stands there. The first line says what is to
    be done. Passages are made of the lines between them.

    Args:
        compressor: Chooses the sentences, and counts the tokens.
        prompt: The prompt, without a chat template.
        max_tokens: Tokens to keep, those of the first and the last line included.
    """
    lines = prompt.split("\n")
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if len(filled) < 3:
        return prompt
    first, last = filled[0], filled[-1]
    head, query = "\n".join(lines[: first + 1]), "\n".join(lines[last:])
    passages = _passages(lines[first + 1 : last])
    used = sum(compressor.count_tokens([head, query]))
    result = compressor.compress(passages, query, max_tokens=max(1, max_tokens - used))
    kept = "\n".join(passage.text for passage in result.passages if passage.text)
    return f"{head}\n{kept}\n{query}"


def _passages(lines: list[str]) -> list[str]:
    """Neighbouring lines together, until they have about `_PASSAGE_WORDS` words; a longer line stands alone."""
    passages: list[str] = []
    words = 0
    for line in lines:
        count = len(line.split())
        if not count:
            continue
        if passages and words + count <= _PASSAGE_WORDS:
            passages[-1] += f"\n{line}"
            words += count
        else:
            passages.append(line)
            words = count
    return passages
