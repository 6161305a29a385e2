"""Prompts of benchmarks, shortened as text."""

from draftapprox_integrations import LoadedModel, SpecPC
from draftapprox_integrations.evaluation.prompts import shorten, split_prompt

SENTENCES = [f"Paragraph {number} tells of the mill and of its wheel." for number in range(100)]


def test_a_long_line_becomes_passages_of_whole_sentences() -> None:
    text = " ".join(SENTENCES)
    head, passages, query = split_prompt(f"Read this.\n{text}\nshort line\n\nQuestion: which?")
    assert (head, query) == ("Read this.", "Question: which?")
    assert len(passages) > 4
    assert " ".join(passages) == f"{text} short line".replace(" short line", "\nshort line")
    assert all(len(passage.split()) <= 150 for passage in passages)
    assert all(passage.startswith("Paragraph") for passage in passages)


def test_a_prompt_without_passages_stays() -> None:
    for prompt in ("", "one", "one\ntwo", "one\n\n  \ntwo\n"):
        assert split_prompt(prompt) == (prompt, [], "")


def test_the_first_and_the_last_line_stay(tiny: LoadedModel) -> None:
    prompt = "\n".join(["Read this.", *SENTENCES, "Question: which?"])
    short = shorten(SpecPC(tiny), prompt, 120)
    lines = short.split("\n")
    assert (lines[0], lines[-1]) == ("Read this.", "Question: which?")
    assert set(" ".join(lines[1:-1]).split()) <= set(prompt.split())
    assert len(short) < len(prompt) / 4
    assert shorten(SpecPC(tiny), "one\ntwo", 1) == "one\ntwo"
