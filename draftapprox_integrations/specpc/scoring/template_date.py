"""Chat templates that print today's date: the draft's prompt has a fixed one.

Else the prompt, and with it the key of every stored passage, would be another one each day. A template learns the time
from `strftime_now` alone. transformers turns functions among the variables of a template into text, so the function is
shadowed by a macro at the template's begin.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

# Friday, 26 July 2024, midnight: the date that Llama 3 has where it is told none. English in every locale.
_DATE = {
    "a": "Fri", "A": "Friday", "w": "5", "u": "5", "d": "26", "-d": "26", "e": "26", "j": "208", "-j": "208",
    "b": "Jul", "h": "Jul", "B": "July", "m": "07", "-m": "7", "y": "24", "Y": "2024", "G": "2024", "C": "20",
    "U": "29", "W": "30", "V": "30", "H": "00", "-H": "0", "I": "12", "-I": "12", "p": "AM", "M": "00", "-M": "0",
    "S": "00", "-S": "0", "f": "000000", "z": "", "Z": "", "F": "2024-07-26", "D": "07/26/24", "x": "07/26/24",
    "T": "00:00:00", "X": "00:00:00", "R": "00:00", "c": "Fri Jul 26 00:00:00 2024", "%": "%",
}  # fmt: skip
_REPLACED = "".join(f"|replace('%{code}', '{text}')" for code, text in _DATE.items())
# Nothing is printed here: transformers' templates drop the line break after a block.
_MACRO = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"


def fixed_date_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template with a fixed date; None if it prints none and can be used as it is."""
    template = tokenizer.get_chat_template() if "strftime_now" in str(tokenizer.chat_template) else ""
    return _MACRO + template if "strftime_now" in template else None
