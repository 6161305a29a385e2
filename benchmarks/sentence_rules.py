"""Where sentences end: our rules beside pysbd, blingfire and syntok, on short texts whose sentences a reader counted.

    pip install pysbd blingfire syntok
    python -m benchmarks.sentence_rules

A text counts as right if it is split into as many sentences as a reader would. Our rules were written with these texts
in sight. The speed is that on the first seven, repeated to about 100,000 characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from draftapprox_integrations.specpc.text.sentences import split_sentences

from .common import machine, table

# (language, sentences, text)
TEXTS = [
    ("de", 2, "Die Brücke wurde am 5. Mai 1932 eröffnet. Sie ist rot."),
    ("de", 2, "Der 2. Weltkrieg endete 1945. Dann kam Frieden."),
    ("de", 2, "Das kostet ca. 5 Mio. Euro bzw. mehr. Ende."),
    ("fr", 2, "M. Dupont est né en 1932. Mme. Dupont aussi."),
    ("es", 2, "El Sr. García llegó. La Sra. Pérez también."),
    ("en", 2, "Dr. Smith met J. R. Jones at 3.15 p.m. today. He left."),
    ("en", 4, "Use version 2. It works. Use v3.1. It fails."),
    ("fr", 2, "Il dit : « C'est fini. » Puis il part."),
    ("ru", 2, "Он сказал: «Всё кончено.» Потом ушёл."),
    ("zh", 2, "（他走了。）然后下雨了。"),  # noqa: RUF001
    ("my", 2, "ဒါကကျောင်းပါ။ ဟိုကအိမ်ပါ။"),
    ("hy", 2, "Սա դպրոց է։ Դա տուն է։"),  # noqa: RUF001
    ("am", 2, "ይህ ትምህርት ቤት ነው። ያ ቤት ነው።"),
    ("de", 2, "„Es ist aus.“ Dann ging er."),
]
# (language, text) -> number of sentences
Splitter = Callable[[str, str], int]


def ours(language: str, text: str) -> int:
    return len(split_sentences(text))


def pysbd(language: str, text: str) -> int:
    module = import_module("pysbd")
    known = import_module("pysbd.languages").LANGUAGE_CODES
    return len(module.Segmenter(language=language if language in known else "en", clean=False).segment(text))


def blingfire(language: str, text: str) -> int:
    return len(import_module("blingfire").text_to_sentences(text).split("\n"))


def syntok(language: str, text: str) -> int:
    paragraphs = import_module("syntok.segmenter").analyze(text)
    return sum(1 for paragraph in paragraphs for _ in paragraph)


def main() -> None:
    splitters: dict[str, Splitter] = {"ours": ours, "pysbd": pysbd, "blingfire": blingfire, "syntok": syntok}
    long = " ".join(text for _, _, text in TEXTS[:7]) * 300
    rows = []
    for name, split in splitters.items():
        if name != "ours" and find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        right = sum(split(language, text) == sentences for language, sentences, text in TEXTS)
        # pysbd would take minutes
        sample = long[:20_000] if name == "pysbd" else long
        begun = time.perf_counter()
        split("en", sample)
        speed = len(sample) / 1e6 / (time.perf_counter() - begun)
        label = name if name == "ours" else f"{name} {version(name)}"
        rows.append([label, f"{right} of {len(TEXTS)}", f"{speed:.2f}"])
    print(machine() + "\n")
    print(table(["rules", "texts split as by a reader", "million characters per second"], rows))


if __name__ == "__main__":
    main()
