"""Where sentences end, language by language."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.text.sentences import split_sentences


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    "text",
    [
        # ordinal numbers and dates
        "Die Brücke wurde am 5. Mai 1932 eröffnet. | Sie ist rot.",
        "Broen åbnede den 5. Maj 1932. | Den er rød.",
        "A híd 1932. Május 5-én nyílt meg. | Piros.",
        "Most byl otevřen 5. Května 1932. | Je červený.",
        "Der 2. Weltkrieg endete 1945. | Dann kam Frieden.",
        "Im 19. Jahrhundert wurde er gebaut. | Er steht noch.",
        "Er wurde 5. | Er freute sich.",
        "Use version 2. | It works. | Use v3.1. | It fails.",
        "He won 5. | Maria left. | Chapter 7. | Market prices rose.",
        # abbreviations and initials
        "Das kostet ca. 5 Mio. Euro bzw. mehr. | Ende.",
        "Prof. Dr. med. Müller kam. | Er blieb.",
        "Sie kostet 5 Euro, d. h. wenig. | Z. B. Brot. | Es gibt u. a. Bücher.",
        "M. Dupont est né en 1932. | Mme. Dupont aussi.",
        "El Sr. García llegó. | La Sra. Pérez también.",
        "г. Москва основан в 1147 г. | Он большой.",
        "J. R. R. Tolkien wrote it. | He was English.",
        "He left at 5 p.m. | The door closed. | The U.S. Army came.",
        "He said no. | Then see no. 5 on p. 7.",
        # marks
        "Wait... | What? | Yes! | See https://x.org/a.b. | It cost 3.50.",
        "¿Cuándo abrió? | ¡Abrió en 1932! | Es rojo.",
        "Il dit : « C'est fini. » | Puis il part.",
        "Он сказал: «Всё кончено.» | Потом ушёл.",
        "„Es ist aus.“ | Dann ging er.",
        "Er kam. | »Komm her«, sagte sie. | »Geh.« | Dann ging er.",
        "He asked “Why?” | “Because.” | He left.",
        "（他走了。）|然后下雨了。|《他走了。》|然后。|【注意。】|然后。|「他走了。」|然后。",
        "他说：“走吧。”|然后走了。|价格是3.5元。|然后呢？",
        # other full stops
        "ဒါကကျောင်းပါ။ | ဟိုကအိမ်ပါ။",
        "នេះជាសាលា។ | នោះជាផ្ទះ។",
        "ይህ ትምህርት ቤት ነው። | ያ ቤት ነው።",
        "Սա դպրոց է։ | Դա տուն է։",
        "पुल 1932 में खोला गया था। | यह लाल है।",
        "هل هذا؟ | نعم. | لا!",
    ],
)
def test_each_language(text: str) -> None:
    sentences = [sentence.strip() for sentence in text.split("|")]
    assert pieces(text.replace(" | ", " ").replace("|", "")) == sentences


@given(
    st.text(
        st.one_of(st.sampled_from(list("aA1. .!?\n\u3002\u201d\u00bb\u00ab)\u0964\u17d4")), st.characters()),
        max_size=80,
    )
)
def test_sentences_are_in_order_and_lose_only_white_space(text: str) -> None:
    position = 0
    for start, end in split_sentences(text):
        assert position <= start < end
        assert not text[position:start].strip()
        position = end
    assert not text[position:].strip()


# Quadratic time would keep this test busy for hours.
@pytest.mark.parametrize(
    "run",
    [".", "!", "?", "\u2026", "\u3002", ". ", ".\n", "1. ", "A. ", "A.", "a.", '.")', ". \u00bb", " ", "'", "(", "x"],
)
def test_hostile_text_takes_linear_time(run: str) -> None:
    text: Any = "Start. " + run * (100_000 // len(run)) + "x"
    assert split_sentences(text)[-1][1] == len(text)
