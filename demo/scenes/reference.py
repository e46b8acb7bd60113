"""How texts speak of the groups of a scene: definite phrases, clear relations, plausible absent classes.

Shared by the questions, expressions and statements. Everything here errs on the side of silence: where
a careful person could object to a claim, the functions return None and no text is made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from random import Random
from typing import Protocol

import numpy as np

from demo.scenes.classes import EmojiClass, load_classes
from demo.scenes.grammar import (
    ABOVE,
    COLOURS,
    COUNT_WORDS,
    LEFT_OF,
    AmbiguousLayout,
    Box,
    ObjectGroup,
    noun_phrase,
    relation,
)

RIGHT_OF = "to the right of"
BELOW = "below"
INVERSE = {LEFT_OF: RIGHT_OF, RIGHT_OF: LEFT_OF, ABOVE: BELOW, BELOW: ABOVE}
#: The other axis' relations: what is denied when two groups stand side by side, and the other way round.
CROSS = {LEFT_OF: (ABOVE, BELOW), RIGHT_OF: (ABOVE, BELOW), ABOVE: (LEFT_OF, RIGHT_OF), BELOW: (LEFT_OF, RIGHT_OF)}

#: Names of which one may be said of the other: with one in the picture, nothing is claimed of the others.
ALIKE = (
    "tree/pine tree/palm tree/christmas tree",
    "car/police car/taxi/ambulance/fire truck",
    "glasses/sunglasses",
    "wine glass/cocktail",
    "ship/sailboat",
    "football/soccer ball",
    "mobile phone/telephone",
    "chick/rooster",
    "candy/lollipop",
    "cap/top hat",
    "cupcake/birthday cake",
    "bear/teddy bear/panda/koala",
    "gift/package",
    "watch/alarm clock",
    "fish/shark",
    "tree/potted plant",
    "sun/star",
    "bread/croissant",
    "egg/chick",
    "coffee/teapot",
    "lock/key",
    "onion/hot pepper",
)

#: Words for whole categories, only those whose members nobody disputes; which have a plural; what makes them doubtful.
CATEGORY_WORDS = ("animal", "fruit", "vegetable", "vehicle", "shape")
CATEGORY_PLURALS = {"animal": "animals", "vehicle": "vehicles", "shape": "shapes"}
DOUBTFUL = {
    "animal": frozenset({"teddy bear", "snowman", "chicken leg"}),
    "fruit": frozenset({"avocado", "tomato", "eggplant", "pumpkin", "cucumber", "hot pepper"}),
    "vegetable": frozenset({"avocado", "tomato", "pumpkin", "mushroom", "coconut", "watermelon"}),
    "vehicle": frozenset({"shopping cart", "ferris wheel"}),
    "shape": frozenset({"star", "moon", "sun", "clover"}),
}

#: Edges of "left", "middle" and "right" (and top to bottom), as shares of the image's side; between them
#: no position is claimed.
LOW_BELOW, MIDDLE_FROM, MIDDLE_TO, HIGH_ABOVE = 0.38, 0.43, 0.57, 0.62
MOST_EXTENT = 0.62  # of the side: what is longer stands nowhere in particular
POSITIONS = {
    (-1, -1): "upper left",
    (0, -1): "top",
    (1, -1): "upper right",
    (-1, 0): "left",
    (0, 0): "middle",
    (1, 0): "right",
    (-1, 1): "lower left",
    (0, 1): "bottom",
    (1, 1): "lower right",
}
LEVEL = 0.2  # of the way from one centre to the other, on its longer axis
#: Wrong numbers for 1 to 4 objects: chances of 1, 2, 3 and 4. Most groups are single, so "one" has to be wrong
#: more often than a number off by one at random would be; see also SPARED.
OTHER_COUNTS = {1: (0, 7, 3, 0), 2: (5, 0, 4, 1), 3: (3, 4, 0, 3), 4: (2, 3, 5, 0)}
#: Share of texts on the number of a single object that is not made: most groups are single, so that "one" would
#: mostly be true and any other number mostly false.
SPARED = 0.85
CLEARLY_BIGGER = 1.7  # ratio of areas


class Picture(Protocol):
    """What questions are asked of: a ``Scene``, or one frame of a video."""

    @property
    def image(self) -> np.ndarray:
        """uint8 [size, size, 3]."""

    @property
    def groups(self) -> tuple[ObjectGroup, ...]:
        """What it shows."""


def class_of(group: ObjectGroup) -> EmojiClass:
    """Return the class of a group."""
    return load_classes()[group.class_index]


def noun(emoji_class: EmojiClass, count: int = 1, colour: str | None = None) -> str:
    """Return the noun without article or number: "red apple", "pairs of glasses"."""
    bare = emoji_class.plural if count != 1 else emoji_class.noun_phrase.split(" ", 1)[1]
    return f"{colour} {bare}" if colour else bare


def indefinite(emoji_class: EmojiClass, colour: str | None = None) -> str:
    """Return "a dog", "an orange book", "a moon": what "is there" asks for."""
    phrase = noun_phrase(emoji_class, colour, 1)
    return f"a {phrase[4:]}" if phrase.startswith("the ") else phrase


def counted(emoji_class: EmojiClass, count: int, colour: str | None = None) -> str:
    """Return "one dog", "three red apples"."""
    return f"{COUNT_WORDS[count]} {noun(emoji_class, count, colour)}"


def verb(count: int) -> str:
    """Return the form of "be" that goes with a number of objects."""
    return "is" if count == 1 else "are"


def definite(group: ObjectGroup, groups: Sequence[ObjectGroup], random: Random) -> str | None:
    """Return "the dog", "the red apples", by which a reader finds this group and no other; else None.

    The colour stands where the class alone is not enough, and otherwise by chance.
    """
    others = [other for other in groups if other is not group]
    if any(other.name in alike(group.name) for other in others):
        return None
    colour = group.colour
    if all(other.name != group.name for other in others) and random.random() < 0.5:
        colour = None
    return f"the {noun(class_of(group), group.count, colour)}"


@cache
def alike(name: str) -> frozenset[str]:
    """Return the names, without this one, that may be said of the same thing."""
    return frozenset(other for names in ALIKE if name in names.split("/") for other in names.split("/")) - {name}


def count_of(groups: Iterable[ObjectGroup], name: str, colour: str | None = None) -> int:
    """Return how many objects have this name, and this colour if one is given."""
    return sum(group.count for group in groups if group.name == name and colour in (None, group.colour))


def absent_class(groups: Sequence[ObjectGroup], random: Random, like: ObjectGroup | None = None) -> EmojiClass:
    """Return a class that surely is not in the scene, mostly of the category of ``like`` (drawn where None).

    Shapes are only ever missing where another shape is there: much else is round or square.
    """
    like = like or random.choice(groups)
    present = {group.name for group in groups}
    pool: Sequence[EmojiClass] = by_category()[class_of(like).category] if random.random() < 0.7 else load_classes()
    if all(group.name in present or not alike(group.name).isdisjoint(present) for group in pool):
        pool = load_classes()
    shapes = any(class_of(group).category == "shape" for group in groups)
    while True:
        emoji_class = random.choice(pool)
        if emoji_class.category == "shape" and not shapes:
            pool = load_classes()
        elif emoji_class.name not in present and alike(emoji_class.name).isdisjoint(present):
            return emoji_class


@cache
def by_category() -> dict[str, tuple[EmojiClass, ...]]:
    """Return the classes of each category."""
    categories: dict[str, list[EmojiClass]] = {}
    for emoji_class in load_classes():
        categories.setdefault(emoji_class.category, []).append(emoji_class)
    return {name: tuple(members) for name, members in categories.items()}


@cache
def colours_of(class_index: int) -> tuple[str, ...]:
    """Return the colours that a class is drawn in."""
    drawn = {drawing.colour for drawing in load_classes()[class_index].drawings}
    return tuple(colour for colour in COLOURS if colour in drawn)


def other_colour(group: ObjectGroup, groups: Sequence[ObjectGroup], random: Random) -> str:
    """Return a colour of the group's class that no group of this class has here."""
    taken = {other.colour for other in groups if other.name == group.name}
    free = [colour for colour in colours_of(group.class_index) if colour not in taken]
    return random.choice(free or [colour for colour in COLOURS if colour not in taken])


def other_count(count: int, random: Random) -> int:
    """Return a near but other number, by which the number that is said does not give away that it is wrong."""
    weights = OTHER_COUNTS.get(count)
    if weights is None:  # the sum of two groups of one class
        return count + random.choice((-1, 1))
    return random.choices(range(1, 5), weights)[0]


def bound_of(count: int, truth: bool, random: Random) -> tuple[str, int]:
    """Return ("more than" or "fewer than", the nearest bound): what is so, or just not so, of a number of objects."""
    bounds = (
        (("more than", count - 1), ("fewer than", count + 1))
        if truth
        else (("more than", count), ("fewer than", count))
    )
    return random.choice([(words, bound) for words, bound in bounds if bound > (words == "fewer than")])


def category_members(groups: Sequence[ObjectGroup], category: str) -> list[ObjectGroup] | None:
    """Return the groups of a category with a word for it; None where the word could be disputed here."""
    if any(group.name in DOUBTFUL[category] for group in groups):
        return None
    return [group for group in groups if class_of(group).category == category]


def related(first: ObjectGroup, second: ObjectGroup) -> str | None:
    """Return how the first group stands to the second, one of the four relations; None where it is unclear."""
    try:
        words, subject, _ = relation(first, second)
    except AmbiguousLayout:
        return None
    return words if subject is first else INVERSE[words]


def surely_not(first: ObjectGroup, words: str, second: ObjectGroup) -> bool:
    """Return whether "first words second" is clearly false.

    Either the opposite is true, or they stand on the other axis and level: the first is no further in the
    denied direction than a fifth of its way on the other axis.
    """
    true = related(first, second)
    if true is None or true == words:
        return False
    if true == INVERSE[words]:
        return True
    across, down = second.centre[0] - first.centre[0], second.centre[1] - first.centre[1]
    ahead = {LEFT_OF: across, RIGHT_OF: -across, ABOVE: down, BELOW: -down}[words]
    return ahead <= LEVEL * max(abs(across), abs(down))


def position_of(box: Box, size: int) -> str | None:
    """Return "upper left", "top", … "middle" for a box in an image of ``size`` pixels; None where unclear."""
    x0, y0, x1, y1 = box
    if max(x1 - x0, y1 - y0) > MOST_EXTENT * size:
        return None
    across, down = _third((x0 + x1) / 2 / size), _third((y0 + y1) / 2 / size)
    return None if across is None or down is None else POSITIONS[across, down]


def _third(share: float) -> int | None:
    if share < LOW_BELOW:
        return -1
    if share > HIGH_ABOVE:
        return 1
    return 0 if MIDDLE_FROM <= share <= MIDDLE_TO else None


def hull(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around one or more boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def area(box: Box) -> float:
    """Return the area of a box, in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def bigger(first: ObjectGroup, second: ObjectGroup) -> ObjectGroup | None:
    """Return the clearly bigger one of two single objects; None where neither is, or a group is not single."""
    if first.count != 1 or second.count != 1:
        return None
    ratio = area(first.box) / area(second.box)
    if 1 / CLEARLY_BIGGER < ratio < CLEARLY_BIGGER:
        return None
    return first if ratio > 1 else second
