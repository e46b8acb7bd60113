"""The 250 object classes of the emoji scenes: names, plurals, drawings and colours.

Read from the committed ``emoji/classes.json``; knows nothing of pictures, so the
caption grammar and the vocabulary can import it without numpy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA_DIR = Path(__file__).resolve().parents[1] / "emoji"
CLASSES_FILE = DATA_DIR / "classes.json"


@dataclass(frozen=True)
class Drawing:
    """One picture of a class: a Unicode code point that every vendor drew in its own style."""

    codepoint: str  # lower-case hex, variation selector removed: "1f34e"
    label: str  # Unicode CLDR short name: "red apple"
    colour: str | None  # set where all vendors agree on the colour


@dataclass(frozen=True)
class EmojiClass:
    """One class that a caption can name. ``index`` counts from 0 in file order."""

    index: int
    name: str  # "apple"
    plural: str  # "apples"; "pairs of glasses" for things counted by a measure word
    noun_phrase: str  # "an apple"; "the moon"
    category: str
    vendors: frozenset[str]  # art styles that have this class
    drawings: tuple[Drawing, ...]

    @property
    def coloured(self) -> bool:
        """True when captions state this class's colour."""
        return self.drawings[0].colour is not None


@cache
def load_classes() -> tuple[EmojiClass, ...]:
    """Return the classes in file order.

    Raises ``FileNotFoundError`` when the data folder is missing and ``ValueError`` when
    drawings and colours of a class do not line up.
    """
    entries = json.loads(CLASSES_FILE.read_text(encoding="utf-8"))["classes"]
    return tuple(_parse_class(index, entry) for index, entry in enumerate(entries))


def _parse_class(index: int, entry: dict) -> EmojiClass:
    codepoints = [entry["codepoint"], *entry["variants"]]
    labels = entry["cldr"]
    colours = entry.get("colors") or [None] * len(codepoints)
    if not len(codepoints) == len(labels) == len(colours):
        raise ValueError(f"class {entry['name']!r}: drawings, labels and colours do not line up")
    return EmojiClass(
        index=index,
        name=entry["name"],
        plural=entry["plural"],
        noun_phrase=entry["np"],
        category=entry["category"],
        vendors=frozenset(entry["vendors"]),
        drawings=tuple(map(Drawing, codepoints, labels, colours)),
    )
