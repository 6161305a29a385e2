"""Text of tokens as they arrive: pieces join to the decoding of all tokens, and the work is linear in their number."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from draftapprox_integrations.engine.detokenizer import IncrementalDetokenizer
from draftapprox_integrations.models import embedded

WORDS = ["▁", "▁▁", "▁the", "the", "▁mill", "s", ".", "▁.", "'", "▁'", "m", "n't", "▁n't", "é", "\ufffd", "好", "0"]


def sentencepiece(decoder: Any) -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma have it: 256 byte tokens, pieces with a mark for spaces, and two control tokens."""
    vocabulary = [f"<0x{byte:02X}>" for byte in range(256)] + WORDS + ["<unk>"]
    model = models.BPE({word: i for i, word in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    return finish(model, decoder)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT has it, with the clean-up of spaces that transformers applies to the whole text."""
    pieces = [
        "[UNK]",
        "the",
        "mill",
        "##s",
        ".",
        "?",
        "!",
        ",",
        "'",
        "n",
        "t",
        "m",
        "s",
        "ve",
        "re",
        "n't",
        "'s",
        "##é",
    ]
    tokenizer = finish(models.WordPiece({word: i for i, word in enumerate(pieces)}), decoders.WordPiece(cleanup=False))
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


def end_of_word() -> PreTrainedTokenizerFast:
    """As the first GPT has it: a mark where a word ends, which is a space only if another token follows."""
    pieces = ["the</w>", "mill", "s</w>", ".</w>", "<unk>"]
    return finish(models.BPE({word: i for i, word in enumerate(pieces)}, []), decoders.BPEDecoder("</w>"))


def finish(model: Any, decoder: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoder
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    backend.add_tokens([AddedToken("<tool>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    folder, local = embedded.locate()
    llama = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return {
        "byte-level": tiny_tokenizer,
        "embedded": AutoTokenizer.from_pretrained(folder, local_files_only=local),
        "llama": sentencepiece(decoders.Sequence(llama)),
        "gemma": sentencepiece(decoders.Sequence(llama[:3])),
        "metaspace": sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
        "wordpiece": wordpiece(),
        "end of word": end_of_word(),
    }


NAMES = ["byte-level", "embedded", "llama", "gemma", "metaspace", "wordpiece", "end of word"]
TEXTS = st.text(st.sampled_from("a .'\ufffd\u00e9好🦊👨‍👩‍👧नम"), max_size=12).map(lambda text: ["text", text])
BYTES = st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF, 0x41, 0x20]), max_size=30).map(
    lambda found: ["bytes", found]
)
IDS = st.lists(st.integers(0, 1 << 20), max_size=40).map(lambda found: ["ids", found])


def as_ids(tokenizer: Any, parts: Any) -> list[int]:
    """Any ids, text as tokens, and single bytes where the tokenizer has tokens for them."""
    mapping = tokenizer.convert_tokens_to_ids
    byte_names = pre_tokenizers.ByteLevel.alphabet()
    ids: list[int] = []
    for kind, value in parts:
        if kind == "ids":
            ids += [number % len(tokenizer) for number in value]
        elif kind == "text":
            ids += tokenizer(value, add_special_tokens=False)["input_ids"]
        else:
            names = [f"<0x{byte:02X}>" for byte in value]
            if mapping("<0x41>") in (None, tokenizer.unk_token_id):
                names = [_byte_level_name(byte) for byte in value]
                names = [name for name in names if name in byte_names]
            ids += [token for name in names if (token := mapping(name)) is not None]
    return ids


def _byte_level_name(byte: int) -> str:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.one_of(TEXTS, BYTES, IDS), max_size=6))
def test_pieces_of_any_tokens_join_to_their_decoding(tokenizers: dict[str, Any], name: str, parts: Any) -> None:
    tokenizer = tokenizers[name]
    ids = as_ids(tokenizer, parts)
    detokenizer, sent = IncrementalDetokenizer(tokenizer), ""
    for count, token in enumerate(ids, 1):
        sent += detokenizer.feed(token)
        if count % 7 == 0:
            assert sent + detokenizer.rest() == tokenizer.decode(ids[:count], skip_special_tokens=True)
    assert sent + detokenizer.rest() == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_piece_has_a_replacement_character_of_its_own(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer("A family 👨‍👩‍👧‍👦, a flag 🏳️‍🌈, then 你好 and नमस्ते " * 4)["input_ids"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.feed(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 20 or name in ("wordpiece", "end of word")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["text", "emoji", "broken", "control"])
def test_the_work_is_linear_in_the_number_of_tokens(
    tokenizers: dict[str, Any], name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers[name]
    if kind == "broken":  # bytes that never complete a character, as far as there are tokens for them
        ids = as_ids(tokenizer, [["bytes", [0xFF, 0x82, 0xF0]], ["text", "a"]])
    elif kind == "control":
        ids = [tokenizer.eos_token_id, *tokenizer("mill")["input_ids"]]
    else:
        ids = tokenizer("The river runs past the mill. " if kind == "text" else "🦊 好")["input_ids"]
    decoded: list[int] = []
    original = type(tokenizer).decode

    def counted(self: Any, token_ids: Any, **options: Any) -> Any:
        decoded.append(len(token_ids))
        return original(self, token_ids, **options)

    monkeypatch.setattr(type(tokenizer), "decode", counted)
    work = []
    for length in (1000, 2000, 4000):
        decoded.clear()
        detokenizer = IncrementalDetokenizer(tokenizer)
        for token in (ids * length)[:length]:
            detokenizer.feed(token)
        work.append(sum(decoded))
    assert work[2] <= 2.2 * work[1] <= 2.2 * 2.2 * work[0]
    assert work[2] <= 60 * 4000
