"""Texts as clients send them."""

from __future__ import annotations

import pytest

from mplug.errors import InvalidRequest
from mplug.inputs import text as texts
from mplug.inputs.text import MAX_TEXT_CHARACTERS, as_text, clean_caption


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("A man, a plan; a canal!", "a man a plan a canal"),
        ("black-and-white photo / sketch", "black and white photo sketch"),
        ("  two\t\n runs   of blanks ", "two runs of blanks"),
        ('say "hi" (twice)? #1: ~it\'s* done.', "say hi twice 1 its done"),
        ("<PERSON> on a horse", "person on a horse"),
        ("über & 50%", "über & 50%"),
        ("...", ""),
    ],
)
def test_clean_caption(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


def test_text_comes_through_unchanged() -> None:
    assert as_text("  Was ist das? 猫 ".encode(), "QUESTION") == "  Was ist das? 猫 "


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", "QUESTION is empty"),
        (b" \n\t ", "QUESTION is empty"),
        ("\u200b\u00a0\0".encode(), "QUESTION is empty"),
        (b"caf\xe9", "QUESTION is not UTF-8 text: .* at byte 3"),
        (b"x" * (MAX_TEXT_CHARACTERS + 1), r"QUESTION has 2,001 characters, at most 2,000"),
    ],
)
def test_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        as_text(data, "QUESTION")


def test_length_counts_characters_not_bytes() -> None:
    text = "猫" * MAX_TEXT_CHARACTERS
    assert as_text(text.encode(), "TEXT") == text


def test_a_text_too_long_is_refused_before_it_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts.unicodedata, "category", lambda _: pytest.fail("was looked through"))
    with pytest.raises(InvalidRequest, match="TEXT has 2,001 characters, at most 2,000 are taken"):
        as_text("\u0301".encode() * 2_001, "TEXT")
