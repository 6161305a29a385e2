"""BM25 tells names apart in every script, and hears the headers that speak for a unit."""

import pytest

from draftapprox_integrations.specpc.scoring.bm25 import BM25Index, BM25Scorer, split_words
from draftapprox_integrations.specpc.text import Passage, segment


@pytest.mark.parametrize(
    ("texts", "query", "asked"),
    [
        (["मीना 1821 में आई।", "मोना 1932 में आई।", "मैना 1640 में आई।", "मानी 1750 में आई।"], "मोना कब आई?", 1),
        (
            ["北京的大桥于1932年建成。", "天津的大桥于1821年建成。", "南京的大桥于1640年建成。"],
            "天津的大桥是哪一年通车的？",
            1,
        ),
        (["赤い橋は1932年に開通した。", "青い塔は1821年に建てられた。"], "塔はいつ建てられましたか？", 1),
        (["สะพานเปิดในปี 1932", "โรงสีสร้างในปี 1821", "หอคอยเสร็จในปี 1640"], "หอคอยเสร็จเมื่อไร", 2),
        (["افتتح الجسر عام 1932.", "بنيت الطاحونة عام 1821."], "متى بُنِيَتِ الطَّاحُونَةُ؟", 1),
        (["다리는 1932년에 개통되었다.", "방앗간은 1821년에 지어졌다."], "방앗간은 언제?", 1),
        (["Hall A has 20 seats.", "Hall B has 30 seats."], "How many seats has Hall B?", 1),
    ],
)
def test_the_asked_text_is_first(texts: list[str], query: str, asked: int) -> None:
    assert int(BM25Index(texts, range(len(texts))).scores(query).argmax()) == asked


def test_words() -> None:
    assert split_words(["मीना"]) != split_words(["मोना"])
    assert split_words(["ＡＢＣ １２ Cafe\u0301"]) == [["abc", "12", "café"]]
    assert split_words(["大桥 a"]) == [["大", "桥", "大桥"]]
    assert split_words(["الْجِسْرُ"]) == split_words(["الجسر"])
    assert split_words(["", "\U0001f600", "the of"]) == [[], [], []]


@pytest.mark.parametrize("run", ["\u0e01", "\u0301", "\u4e2d", "a", "'a", "\u0e01\u0e31"])
def test_long_words_take_linear_time(run: str) -> None:
    assert len(split_words([run * (200_000 // len(run)) + "x"])) == 1


def test_headers_are_part_of_what_a_unit_says() -> None:
    text = "".join(f"[server {name}]\nport = {port}\n" for name, port in (("alder", 81), ("birch", 82), ("elm", 83)))
    units = segment([text])
    (scores,) = BM25Scorer().score("Which port does the server birch use?", [Passage(text)], units)
    best = max((score, unit.text) for score, unit in zip(scores.tolist(), units[0], strict=True) if "=" in unit.text)
    assert best[1] == "port = 82"
