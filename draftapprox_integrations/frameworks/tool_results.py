"""Rules that every part which shortens conversations follows: what a result is read with, and what is JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence


def query_for(index: int, questions: Sequence[tuple[int, str]]) -> str:
    """Return the query to read a message with: the question it came with or was fetched for, and the latest one.

    Args:
        index: Index of the message.
        questions: (index of the message, text) of each question, in order; at least one.
    """
    fetched_for = [text for position, text in questions if position <= index][-1:]
    return "\n".join(dict.fromkeys([*fetched_for, questions[-1][1]]))


def is_json(text: str) -> bool:
    """Return whether the text is a JSON object or list; pieces of one would not be valid JSON."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except RecursionError:
        return True  # too deep to be read here, but not for everybody
    except ValueError:
        return False
    return True
