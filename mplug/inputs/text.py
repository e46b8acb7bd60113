"""Texts as clients send them."""

from __future__ import annotations

import unicodedata

from mplug.errors import InvalidRequest

MAX_TEXT_CHARACTERS = 2_000

_NOT_IN_CAPTIONS = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~"), "-": " ", "/": " "})
#: Unicode categories of characters that something can be read from: letters, numbers, punctuation, symbols. A mark
#: (Mn: accents, variation selectors) or a format character alone says nothing, and the tokenizer drops it.
_READABLE = ("L", "N", "P", "S")


def as_text(data: bytes, name: str) -> str:
    """The text of one BYTES element; raises `InvalidRequest` naming `name`.

    Refused: bytes that are not UTF-8, text without a single visible character, and more than
    `MAX_TEXT_CHARACTERS` (the encoders read a few dozen tokens, the rest would be dropped unseen).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters, at most {MAX_TEXT_CHARACTERS:,} are taken: send less text"
        )
    if not any(unicodedata.category(character)[0] in _READABLE for character in text):
        raise InvalidRequest(f"{name} is empty: send at least one visible character")
    return text


def clean_caption(text: str) -> str:
    """A caption or retrieval text as in training: lower case, without ,.'!?"()*#:;~ and runs of blanks.

    `-` and `/` become blanks, and the `<person>` of anonymised captions becomes the word.
    """
    return " ".join(text.lower().translate(_NOT_IN_CAPTIONS).replace("<person>", "person").split())


def clean_question(text: str, words: int) -> str:
    """Return the first `words` of what was read in a picture, without the marks that captions lose.

    As the published `pre_question` does it, where blanks in a row enclose words without letters, which count, too.
    """
    return " ".join(text.lower().translate(_NOT_IN_CAPTIONS).rstrip(" ").split(" ")[:words])
