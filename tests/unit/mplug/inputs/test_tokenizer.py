"""WordPiece: the golden ids, Hugging Face's conventions, and vocabularies that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mplug.inputs.tokenizer import SPECIAL_TOKENS, Tokenizer

GOLDEN = Path(__file__).parents[3] / "parity" / "data"
LINES = "a man un ##able ##s cat cafe don ' t it s . , ? ! - [ ] unused ##7 猫 [unused7]"
WORDS = LINES.split()


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n", encoding="utf-8")
    return path


def tokens(tokenizer: Tokenizer, text: str, max_length: int = 32, **options: object) -> str:
    """The encoded text in tokens, without padding."""
    ids, mask = tokenizer.encode(text, max_length, **options)
    names = [*SPECIAL_TOKENS, *WORDS]
    return " ".join(names[index] for index in ids[mask == 1])


@pytest.mark.parametrize(
    "case, key",
    [("vqa", "questions"), ("video", "questions"), ("retrieval", "texts"), ("grounding", "texts")],
)
def test_golden_ids(case: str, key: str) -> None:
    expected = json.loads((GOLDEN / case / "expected.json").read_text())
    golden = np.load(GOLDEN / case / "tensors.npz")
    config = json.loads((GOLDEN / case / "config_bert.json").read_text())
    tokenizer = Tokenizer(GOLDEN / case / "vocab.txt", vocab_size=config["vocab_size"])
    assert len(expected[key]) == len(golden["input_ids"]) > 0
    for text, ids, mask in zip(expected[key], golden["input_ids"], golden["attention_mask"], strict=True):
        input_ids, attention_mask = tokenizer.encode(text, expected["tokenizer_max_length"])
        assert input_ids.dtype == attention_mask.dtype == np.int32
        np.testing.assert_array_equal(input_ids, ids)
        np.testing.assert_array_equal(attention_mask, mask)
        assert tokenizer.decode(input_ids) == text


def test_golden_box_tokens() -> None:
    expected = json.loads((GOLDEN / "grounding" / "expected.json").read_text())
    tokenizer = Tokenizer(GOLDEN / "grounding" / "vocab.txt")
    first = tokenizer.token_id(expected["first_bin_token"])
    for ids, box in zip(expected["box_tokens"], expected["box_cxcywh_normalised"], strict=True):
        assert [(index - first) / (expected["bins"] - 1) for index in ids] == pytest.approx(box)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A man", "a man"),
        ("UNABLE cats", "un ##able cat ##s"),
        ("Café", "cafe"),  # accents go
        ("猫猫a", "猫 猫 a"),  # every Chinese character is a word
        ("a\u0000\u200b man\ufffd", "a man"),  # control characters go
        ("dog", "[UNK]"),
        ("cat" * 40, "[UNK]"),  # longer than BERT looks at
        ("a [SEP] man", "a [SEP] man"),
        ("a[SEP]man", "a [SEP] man"),
        ("[sep]", "[ [UNK] ]"),
        ("[unused7]", "[ unused ##7 ]"),  # not special in the published tokeniser
        ("", ""),
    ],
)
def test_conventions_of_bert(vocab: Path, text: str, expected: str) -> None:
    assert tokens(Tokenizer(vocab), text).split() == ["[CLS]", *expected.split(), "[SEP]"]


def test_cut_off_before_the_last_sep(vocab: Path) -> None:
    tokenizer = Tokenizer(vocab)
    assert tokens(tokenizer, "a man cats a", max_length=5) == "[CLS] a man cat [SEP]"
    assert tokens(tokenizer, "a man cat", max_length=5) == "[CLS] a man cat [SEP]"
    assert tokens(tokenizer, "a", max_length=2) == "[CLS] [SEP]"
    with pytest.raises(ValueError, match="max_length is 1"):
        tokenizer.encode("a", 1)


def test_padding_is_zero_and_masked(vocab: Path) -> None:
    ids, mask = Tokenizer(vocab).encode("a man", 7)
    assert ids.tolist() == [2, 5, 6, 3, 0, 0, 0]
    assert mask.tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_words_behind_the_question(vocab: Path) -> None:
    tokenizer = Tokenizer(vocab)
    assert tokens(tokenizer, "a cat?", behind=["man", "it"]) == "[CLS] a cat ? [SEP] man [SEP] it [SEP]"
    assert tokens(tokenizer, "a cat?", behind=["", "it"]) == "[CLS] a cat ? [SEP] [SEP] it [SEP]"
    assert tokens(tokenizer, "a cat?", 6, behind=["man"]) == "[CLS] a cat ? [SEP] [SEP]"
    # The published code joins strings; the ids are the same.
    joined, _ = tokenizer.encode("a cat? [SEP] man [SEP] it", 20)
    apart, _ = tokenizer.encode("a cat?", 20, behind=["man", "it"])
    np.testing.assert_array_equal(joined, apart)


def test_decode_reads_up_to_the_first_sep(vocab: Path) -> None:
    tokenizer = Tokenizer(vocab)
    ids, _ = tokenizer.encode("unable cats", 16, behind=["man"])
    assert tokenizer.decode(ids) == "unable cats"
    assert tokenizer.decode([2, 5, 6]) == "a man"
    assert tokenizer.decode([2, 3, 5]) == tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    "text, decoded",
    [
        ("it's a man.", "it's a man."),
        ("don't, man!", "don't, man!"),
        ("a man?", "a man?"),
        ("a dog man", "a man"),  # [UNK] is left out
        ("un-cat", "un - cat"),  # hyphens stay apart
    ],
)
def test_decode_closes_up_punctuation(vocab: Path, text: str, decoded: str) -> None:
    tokenizer = Tokenizer(vocab)
    assert tokenizer.decode(tokenizer.encode(text, 16)[0]) == decoded


@pytest.mark.parametrize("index", [-1, 10_000])
def test_decode_refuses_foreign_ids(vocab: Path, index: int) -> None:
    with pytest.raises(ValueError, match=f"token id {index} is outside the vocabulary of 28 tokens"):
        Tokenizer(vocab).decode([2, index])


def test_ids_by_name(vocab: Path) -> None:
    tokenizer = Tokenizer(vocab)
    assert tokenizer.vocab_size == 28
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.token_id("[unused7]") == 27
    with pytest.raises(KeyError, match=r"no '\[unused8\]'"):
        tokenizer.token_id("[unused8]")


def test_windows_line_ends(vocab: Path) -> None:
    vocab.write_bytes(vocab.read_bytes().replace(b"\n", b"\r\n"))
    assert tokens(Tokenizer(vocab), "a man") == "[CLS] a man [SEP]"


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("", "is empty"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\ncat\n", "has 'cat' twice, as id 5 and as id 6"),
        ("[PAD]\n[CLS]\n[SEP]\ncat\n", r"lacks \[UNK\], \[MASK\]"),
        ("\n".join(SPECIAL_TOKENS), "has 5 tokens, the model's configuration says 28"),
    ],
)
def test_vocabulary_is_checked(vocab: Path, content: str, complaint: str) -> None:
    vocab.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        Tokenizer(vocab, vocab_size=28)
