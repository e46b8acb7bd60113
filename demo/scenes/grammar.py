"""Captions of emoji scenes: one canonical sentence per scene, and the way back.

Phrase:      article or count word, colour where the class has one, name: "a dog", "two red apples".
One group:   "<A>".   Two groups: "<A> to the left of <B>" or "<A> above <B>", whichever axis the
groups' centres differ on clearly.   Three or four: "<A>, <B> and <C>" by centre from left to right.
The scene generator keeps only layouts for which ``caption_of`` finds exactly one sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Protocol

from demo.scenes.classes import EmojiClass, load_classes

COUNT_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
LEFT_OF = "to the left of"
ABOVE = "above"

AXIS_DOMINANCE = 1.35  # the named axis' offset of two centres is at least this many times the other's
ORDER_MARGIN = 0.1  # least step between neighbouring centres of three or four groups, of the image side

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive


class AmbiguousLayout(ValueError):
    """No sentence of the grammar describes the layout clearly; lay the groups out again."""


@dataclass(frozen=True)
class ObjectGroup:
    """``count`` objects of one class (and colour) that stand together. ``box`` covers them all."""

    class_index: int
    name: str
    colour: str | None
    count: int
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class NamedGroup:
    """What a caption says of one group; ``count`` is None where it names a plural without a number."""

    name: str
    colour: str | None
    count: int | None


class HasGroups(Protocol):
    """Anything with groups that have a class name: a ``Scene``."""

    @property
    def groups(self) -> Sequence[ObjectGroup]: ...


def noun_phrase(emoji_class: EmojiClass, colour: str | None, count: int) -> str:
    """Return "a dog", "an orange book", "two pairs of glasses".

    Raises ``ValueError`` for a count outside 1..20.
    """
    if not 1 <= count < len(COUNT_WORDS):
        raise ValueError(f"count must be 1..{len(COUNT_WORDS) - 1}, not {count}")
    if count > 1:
        return " ".join(word for word in (COUNT_WORDS[count], colour, emoji_class.plural) if word)
    article, bare = emoji_class.noun_phrase.split(" ", 1)
    if colour is None:
        return emoji_class.noun_phrase
    if article != "the":
        article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {bare}"


def phrase_of(group: ObjectGroup) -> str:
    """Return the noun phrase of a group."""
    return noun_phrase(load_classes()[group.class_index], group.colour, group.count)


def relation(first: ObjectGroup, second: ObjectGroup) -> tuple[str, ObjectGroup, ObjectGroup]:
    """Return (relation words, subject, object) of two groups.

    Raises ``AmbiguousLayout`` unless one axis dominates and the boxes are apart on it.
    """
    (x1, y1), (x2, y2) = first.centre, second.centre
    across, down = abs(x2 - x1), abs(y2 - y1)
    if across >= AXIS_DOMINANCE * down:
        left, right = (first, second) if x1 < x2 else (second, first)
        if left.box[2] <= right.box[0]:
            return LEFT_OF, left, right
    elif down >= AXIS_DOMINANCE * across:
        upper, lower = (first, second) if y1 < y2 else (second, first)
        if upper.box[3] <= lower.box[1]:
            return ABOVE, upper, lower
    raise AmbiguousLayout("the groups are neither clearly side by side nor clearly one above the other")


def caption_of(groups: Sequence[ObjectGroup], size: int) -> str:
    """Return the one caption of 1..4 groups in an image of ``size`` pixels.

    Raises ``AmbiguousLayout`` when the positions do not fix it, ``ValueError`` without groups.
    """
    if not groups:
        raise ValueError("a caption needs at least one group")
    if len(groups) == 1:
        return phrase_of(groups[0])
    if len(groups) == 2:
        words, subject, other = relation(*groups)
        return f"{phrase_of(subject)} {words} {phrase_of(other)}"
    ordered = sorted(groups, key=lambda group: group.centre[0])
    for left, right in pairwise(ordered):
        if right.centre[0] - left.centre[0] < ORDER_MARGIN * size:
            raise AmbiguousLayout("two groups stand too nearly one above the other to be put in order")
    phrases = [phrase_of(group) for group in ordered]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


@cache
def _names() -> tuple[dict[tuple[str, ...], tuple[str, bool]], int]:
    """Return ({words: (class name, is plural)}, length of the longest). Unmarked plurals read as singular."""
    names: dict[tuple[str, ...], tuple[str, bool]] = {}
    for emoji_class in load_classes():
        names.setdefault(tuple(emoji_class.plural.split()), (emoji_class.name, True))
    for emoji_class in load_classes():
        names[tuple(emoji_class.name.split())] = (emoji_class.name, False)
        names[tuple(emoji_class.noun_phrase.split()[1:])] = (emoji_class.name, False)
    return names, max(map(len, names))


def parse_caption(text: str) -> list[NamedGroup]:
    """Return the groups that a text names, in its order. Never raises: words it does not know are skipped.

    Longest name first: a "hot dog" is not a dog, a "police car" not a car.
    """
    names, longest = _names()
    words = re.findall(r"[a-z0-9]+", text.lower())
    groups: list[NamedGroup] = []
    position = 0
    while position < len(words):
        for length in range(min(longest, len(words) - position), 0, -1):
            found = names.get(tuple(words[position : position + length]))
            if found:
                groups.append(_named_group(words[:position], *found))
                position += length
                break
        else:
            position += 1
    return groups


def _named_group(before: list[str], name: str, plural: bool) -> NamedGroup:
    colour = before[-1] if before and before[-1] in COLOURS else None
    determiner = before[-2:-1] if colour else before[-1:]
    if determiner and determiner[0] in COUNT_WORDS:
        return NamedGroup(name, colour, COUNT_WORDS.index(determiner[0]))
    return NamedGroup(name, colour, None if plural else 1)


def object_recall(prediction: str, scene: HasGroups) -> float:
    """Return the share (0..1) of the scene's groups whose class the text names, in singular or plural.

    A class that makes two groups has to be named twice.
    """
    named = Counter(group.name for group in parse_caption(prediction))
    wanted = Counter(group.name for group in scene.groups)
    return sum((named & wanted).values()) / sum(wanted.values())


def exact_match(prediction: str, caption: str) -> bool:
    """Return whether two captions have the same words; case, punctuation and spaces do not count."""
    return re.findall(r"[a-z0-9]+", prediction.lower()) == re.findall(r"[a-z0-9]+", caption.lower())
