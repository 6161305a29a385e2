"""Text with a structure of its own: rows, records, JSON, HTML, code; and what speaks for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.text import Sentence, segment
from draftapprox_integrations.specpc.text.segmentation import headers_of


def units(text: str, max_characters: int = 600) -> list[Sentence]:
    (found,) = segment([text], max_characters=max_characters)
    return found


def shown(text: str, max_characters: int = 600) -> list[str]:
    return [unit.text for unit in units(text, max_characters)]


def spoken_for(text: str, wanted: str, max_characters: int = 600) -> list[str]:
    """The texts of the headers of the unit that contains `wanted`, outermost first."""
    found = units(text, max_characters)
    (index,) = [i for i, unit in enumerate(found) if wanted in unit.text and unit.section_end is None]
    return [found[i].text for i in reversed(headers_of(found)[index])]


ROWS = range(1, 9)
BRIDGES = [{"name": f"Bridge {i}", "opened": 1900 + i, "colour": "red"} for i in ROWS]
LINES = {
    "csv": ["name,opened,length", *(f"Bridge {i},{1900 + i},{7 * i}" for i in ROWS)],
    "tsv": ["name\topened", *(f"Bridge {i}\t{1900 + i}" for i in ROWS)],
    "semicolons": ["name;opened", *(f"Bridge {i};{1900 + i}" for i in ROWS)],
    "quoted": ["name,text", *(f'"Bridge {i}","long, and {i} old"' for i in ROWS)],
    "columns": ["Name       Opened", *(f"Bridge {i}   {1900 + i}" for i in ROWS)],
    "names": ["name,colour", *(f"{name},red" for name in ("Alder", "Birch", "Elm", "Oak"))],
    "log": [f"2024-05-0{i} 12:00:0{i} INFO worker-{i} finished job {i * 37}" for i in ROWS],
    "transcript": [f"[0{i}:00] Anna: the room {i} is open until {i} pm" for i in ROWS],
    "hours": ["Opening hours", "Monday: 9-17", "Tuesday: 10-18", "Wednesday: closed", "Friday 8-10"],
    "ini": ["port = 81", "retries=3", "; times", "timeout = 5"],
    "jsonl": [json.dumps(bridge) for bridge in BRIDGES],
    "poem": ["Roses are red", "Violets are blue sometimes", "Sugar is sweet", "And so are you too"],
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_each_line_of_records_is_a_unit(lines: list[str]) -> None:
    assert shown("\n".join(lines) + "\n") == lines
    assert shown("Before it. And more.\n\n" + "\n".join(lines) + "\n\nAfter it.") == [
        "Before it.",
        "And more.",
        *lines,
        "After it.",
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolons", "quoted", "columns", "names", "hours"])
def test_the_header_speaks_for_every_row(kind: str) -> None:
    header, *rows = LINES[kind]
    text = "\n".join([header, *rows]) + "\n\nAfter it."
    for row in rows:
        assert spoken_for(text, row) == [header]
    assert spoken_for(text, "After it.") == []


def test_wrapped_prose_is_not_records() -> None:
    text = (
        "The old mill was built in 1821 by Anton\nBerg and stands on the river. It closed\nin 1950 and became a "
        "museum. In winter\nnobody comes. Then they\nsleep."
    )
    assert len(shown(text)) == 4
    assert shown(
        "Anna, Ben and Cleo came, saw, and\nleft, as they say, in 1932, but then\nthey came, saw, and won."
    ) == ["Anna, Ben and Cleo came, saw, and\nleft, as they say, in 1932, but then\nthey came, saw, and won."]


def test_a_markdown_table_with_its_heading() -> None:
    text = "# Bridges\n\n| Name | Length |\n|------|-----|\n| Alder | 7 |\n| Birch | 9 |\n\nAll were measured."
    assert spoken_for(text, "Birch") == ["# Bridges", "| Name | Length |\n|------|-----|"]
    assert spoken_for(text, "All were") == ["# Bridges"]


def test_a_section_of_settings_speaks_for_its_lines() -> None:
    text = "".join(f"[bridge {i}]\nopened = {1900 + i}\nlength={i * 7}\n\n" for i in ROWS)
    assert spoken_for(text, "1904") == ["[bridge 4]"]
    text = "".join(f"bridge_{i}:\n  opened: {1900 + i}\n  length: {i * 7}\n" for i in ROWS)
    assert spoken_for(text, "1904") == ["bridge_4:"]


@pytest.mark.parametrize("indent", [None, 2])
def test_each_object_of_json_is_a_unit(indent: int | None) -> None:
    found = shown(json.dumps(BRIDGES, indent=indent))
    assert [json.loads(text.strip("[],\n ")) for text in found] == BRIDGES


def test_json_that_a_splitter_cut_off() -> None:
    text = json.dumps(BRIDGES)
    for start in range(1, 60):
        found = shown(text[start:-30])
        whole = [bridge for bridge in BRIDGES if json.dumps(bridge) in text[start:-30]]
        assert sum(any(json.dumps(bridge) in unit for unit in found) for bridge in whole) == len(whole)
        assert max(map(len, found)) < 130


def test_keys_speak_for_the_fields_of_large_objects() -> None:
    text = json.dumps({"bridges": {b["name"]: {**b, "note": "x" * 40} for b in BRIDGES}}, indent=1)
    assert spoken_for(text, "1904", 60) == ['{\n "bridges": {', '"Bridge 4": {']


def test_html() -> None:
    rows = "".join(f"<tr><td>Bridge {i}</td><td>{1900 + i}</td></tr>" for i in ROWS)
    text = (
        f"<h2>Bridges</h2><table><tr><th>Name</th><th>Opened</th></tr>{rows}</table><p>The mill is old. It is red.</p>"
    )
    assert spoken_for(text, "1904") == ["<h2>Bridges</h2>", "<table><tr><th>Name</th><th>Opened</th></tr>"]
    assert shown(text)[-2:] == ["<p>The mill is old.", "It is red.</p>"]
    items = [f"<li>Bridge {i}: {1900 + i}</li>" for i in ROWS]
    assert shown("".join(items)) == items


def test_xml_of_any_kind() -> None:
    items = [f'<bridge id="{i}"><name>Bridge {i}</name><opened>{1900 + i}</opened></bridge>' for i in ROWS]
    found = shown("<bridges>" + "".join(items) + "</bridges>")
    assert found == ["<bridges>" + items[0], *items[1:-1], items[-1] + "</bridges>"]


def test_a_question_stays_with_its_answer() -> None:
    pairs = [f"Q: When was bridge {i} opened?\nA: In {1900 + i}. It was a Monday." for i in ROWS]
    assert shown("\n\n".join(pairs)) == pairs
    assert shown("\n".join(pairs)) == pairs


def test_functions_are_units_and_large_ones_are_opened() -> None:
    functions = [
        f"def opened_{i}(name):\n    # Look up. Then return.\n    value = {i}\n\n    return value + {1900 + i}"
        for i in ROWS
    ]
    text = "import os\n\n\n" + "\n\n\n".join(functions) + "\n"
    assert shown(text) == ["import os", *functions]
    assert spoken_for(text, "return value + 1904", 60) == ["def opened_4(name):"]
    fenced = f"Look here:\n\n```py\n{text}```\nAfter it."
    assert shown(fenced)[3] == functions[1 - 1]
    assert spoken_for(fenced, "+ 1904") == ["```py"]
    braces = ["function a(x) {\n  const y = x + 1;\n\n  return y;\n}", "function b(x) {\n  return x * 2;\n}"]
    assert shown("\n\n".join(braces)) == braces


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("".join(f"bridge{i}={1900 + i};" for i in range(60)), "bridge44=1944"),
        ("The list: " + ", ".join(f"a vase from {1700 + i}" for i in range(60)) + ".", "a vase from 1744"),
        ("".join(f"桥{i}于{1900 + i}年建成，" for i in range(60)), "桥44于1944年建成"),
        ("x" * 600 + " needle " + "y" * 600, "needle"),
    ],
)
def test_a_unit_that_is_too_long_is_cut_between_its_items(text: str, item: str) -> None:
    found = shown(text, 100)
    assert max(map(len, found)) <= 100
    assert any(item in unit for unit in found)


STRUCTURES = [
    "| a ",
    "|\n",
    "[",
    "{",
    '"',
    '"a":',
    "<",
    "<li>",
    "# ",
    "- ",
    "```\n",
    "a,b\n",
    "a: b\n",
    "def a():\n",
    "  x = 1\n",
    "]",
    "}{",
    "\t",
    "= ",
]


@given(
    st.lists(st.sampled_from([*STRUCTURES, "\n", "word ", "1932", "\n\n", "."]), max_size=60).map("".join),
    st.integers(8, 80),
)
def test_any_mixture_of_structures(text: str, limit: int) -> None:
    position = 0
    for unit in units(text, limit):
        assert position <= unit.start < unit.end <= unit.start + limit
        assert not text[position : unit.start].strip()
        assert unit.section_end is None or unit.end <= unit.section_end <= len(text)
        position = unit.end
    assert not text[position:].strip()


def test_many_paragraphs_of_one_line_take_linear_time() -> None:
    text = "The mill is old, and red.\n\n" * 20_000 + "\n\n".join(LINES["transcript"] * 40)
    found = units(text)
    assert [unit.text for unit in found[:20_000]] == ["The mill is old, and red."] * 20_000
    assert [unit.text for unit in found[-8:]] == LINES["transcript"]


def test_deeply_nested_code_takes_linear_time() -> None:
    assert units("".join(" " * depth + "if x:\n" for depth in range(2000)))


# Quadratic time would keep this test busy for hours.
@pytest.mark.parametrize("run", STRUCTURES)
def test_hostile_structures_take_linear_time(run: str) -> None:
    assert units(run * (80_000 // len(run)) + "x", 50)
