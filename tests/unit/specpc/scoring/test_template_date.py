"""Templates that print today's date: the draft's prompt, and so every stored key, stays the same from day to day."""

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from draftapprox_integrations import SpecPC, load_model
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.specpc.scoring.heads import HeadSet
from draftapprox_integrations.specpc.scoring.prompt import PromptBuilder
from draftapprox_integrations.specpc.scoring.template_date import _DATE
from tests.conftest import CHAT_TEMPLATE, tiny_llama

LLAMA = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today: " + date_string }}"""
WITH_A_DATE = {
    "llama 3.2": (LLAMA, "Today: 26 Jul 2024"),
    "llama 3.1": (LLAMA.replace("strftime_now is defined", "false"), "Today: 26 Jul 2024"),
    "default of a variable": ("{{ date_string|default('a day') }} ", "a day "),
    "called directly": ("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} ", "2024-07-26 00:00:00.000000 "),
    "keyword": ("{{ strftime_now(format='%A, %-d %B %Y') }} ", "Friday, 26 July 2024 "),
    "in a macro": ("{% macro m() %}{{ strftime_now('%y') }}{% endmacro %}{{ m() }}{{ m() }}", "2424"),
    "first line": ("  {% set x = strftime_now('%y') %}\n\n a {{ x }}", "\n a 24"),
    "begins with an empty line": ("\n a {{ strftime_now('%y') }}", "\n a 24"),
}


def tokenizer_with(tokenizer: PreTrainedTokenizerFast, template: Any) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("name", WITH_A_DATE)
@pytest.mark.parametrize("named", [False, True], ids=["one template", "named templates"])
def test_a_template_that_prints_the_time_gives_a_fixed_prompt(
    tiny_tokenizer: PreTrainedTokenizerFast, name: str, named: bool
) -> None:
    begin, printed = WITH_A_DATE[name]
    template: Any = begin + CHAT_TEMPLATE
    if named:
        template = {"default": template, "tool_use": CHAT_TEMPLATE}
    found = PromptBuilder(load_model((tiny_llama(), tokenizer_with(tiny_tokenizer, template))))
    # The text as a variable: jinja would take its line breaks for its own.
    expected = tokenizer_with(tiny_tokenizer, "{{ " + repr(printed) + " }}" + CHAT_TEMPLATE)
    assert found.head == PromptBuilder(load_model((tiny_llama(), expected))).head
    assert found.tail("q") == PromptBuilder(load_model((tiny_llama(), expected))).tail("q")


def test_the_fixed_date_is_one_date() -> None:
    date = datetime.datetime(2024, 7, 26)
    assert {code: date.strftime(f"%{code}") for code in _DATE} == _DATE


class Tomorrow(datetime.datetime):
    """The time as templates see it a day later."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().now(tz) + datetime.timedelta(days=1)


def test_the_store_reads_nothing_again_on_the_next_day(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_with(tiny_tokenizer, LLAMA + CHAT_TEMPLATE)
    draft = load_model((tiny_llama(), tokenizer))
    heads = HeadSet("tiny", str(fingerprint(draft.model)), ((1, 0),))

    def ingest() -> int:
        passages = ["The old mill was built in 1821. It is small.", "The bridge was opened in 1932."]
        return SpecPC(draft, scorer="heads", heads=heads, store=tmp_path / "store.db").ingest(passages)

    def today() -> str:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))

    before, read = today(), ingest()
    assert read > 0
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert today() != before
    assert ingest() == 0
