"""JSON of answers: any Python text can be sent, lone surrogates included."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse


def encode_json(content: Any) -> bytes:
    """`content` as UTF-8 JSON; a lone surrogate, which UTF-8 cannot write, makes it ASCII with escapes."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class JSONAnswer(JSONResponse):
    """A JSON answer; bytes are JSON already."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return content if isinstance(content, bytes) else encode_json(content)
