"""The command line's search: every script, and texts or questions that have no word to search for."""

from pathlib import Path

import pytest

from draftapprox_integrations.cli.documents import Passage, Search, read_folder, search
from tests.helpers.command_line import run_here

CHINESE = {
    "桥": "这座桥于1932年建成，被漆成红色。",
    "磨坊": "老磨坊始建于1821年，现在是一个小博物馆。",
    "渡轮": "渡轮每天航行六次，星期天只有两次。",
    "学校": "学校有一百二十名学生和九位教师。",
    "灯塔": "灯塔高三十一米，灯光在二十海里外可见。",
    "奶酪": "奶牛场生产四种奶酪，最老的要陈放十四个月。",
    "图书馆": "图书馆周一关门，其他日子九点开放。",
    "医院": "医院在山上，有四十张床位。",
    "市场": "市场每周六早上在广场举行。",
    "火车": "火车站在1954年关闭，铁轨已被拆除。",
}
JAPANESE = [
    "橋は1932年に完成し、赤く塗られている。",
    "古い水車小屋は今は小さな博物館である。",
    "フェリーは一日に六回出航する。",
    "チーズは十四か月熟成させる。",
]
THAI = ["สะพานเปิดในปี 1932 และทาสีแดง", "โรงสีเก่าเป็นพิพิธภัณฑ์ขนาดเล็ก", "เรือข้ามฟากแล่นวันละหกเที่ยว", "ชีสต้องบ่มนานสิบสี่เดือน"]
HINDI = [
    f"{name} {city} में रहती है।" for name, city in (("मीना", "दिल्ली"), ("मोना", "पुणे"), ("मैना", "आगरा"), ("मानी", "जयपुर"))
]


def passages(texts: list[str]) -> list[Passage]:
    return [Passage(text, f"{number}", f"{number}.txt") for number, text in enumerate(texts)]


@pytest.mark.parametrize("word", CHINESE)
def test_chinese(word: str) -> None:
    found = search(passages(list(CHINESE.values())), f"{word}怎么样？", 3)
    assert found[0].text == CHINESE[word]


@pytest.mark.parametrize(
    ("texts", "query", "best"),
    [
        (JAPANESE, "橋はいつ完成しましたか", 0),
        (JAPANESE, "フェリーは何回出ますか", 2),
        (JAPANESE, "チーズの熟成", 3),
        (THAI, "สะพานเปิดเมื่อไร", 0),
        (THAI, "โรงสีเก่าคืออะไร", 1),
        (THAI, "เรือข้ามฟาก", 2),
        (HINDI, "मीना कहाँ रहती है?", 0),
        (HINDI, "मोना कहाँ रहती है?", 1),
        (HINDI, "मैना कहाँ रहती है?", 2),
        (HINDI, "मानी कहाँ रहती है?", 3),
    ],
)
def test_other_scripts(texts: list[str], query: str, best: int) -> None:
    assert search(passages(texts), query, 1)[0].text == texts[best]


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["\U0001f600 \U0001f680", "\U0001f40d"], "When was the bridge opened?"),
        (["the of and", "is it"], "What is it?"),
        (["The bridge was opened in 1932.", "\U0001f600"], "Is it the?"),
        (["The bridge was opened in 1932.", "\U0001f600"], "\U0001f600"),
    ],
)
def test_no_word_to_search_for(texts: list[str], query: str, caplog: pytest.LogCaptureFixture) -> None:
    assert [p.text for p in search(passages(texts), query, 5)] == texts  # NumPy's warnings are errors here
    assert "no passage shares a word with" in caplog.text


def test_equal_passages_stay_in_order_and_one_index_serves_many_questions() -> None:
    index = Search(passages(["The storm came.", "The mill stands.", "The storm came."]))
    assert [p.file for p in index.find("storm", 2)] == ["0.txt", "2.txt"]
    assert index.find("mill", 1)[0].file == "1.txt"


def test_ask_a_folder_without_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\U0001f600 \U0001f680 \U0001f40d", encoding="utf-8")
    (tmp_path / "b.txt").write_text("the of and is", encoding="utf-8")
    assert len(read_folder(tmp_path)) == 2
    done = run_here("ask", "What is it?", "--docs", tmp_path, "--max-new-tokens", 4)
    assert done.code == 0, done.err
    assert "Retrieved 2 of 2 passages" in done.out
    assert "shares a word" in done.message
