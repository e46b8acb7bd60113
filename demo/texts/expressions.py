"""Referring expressions: texts that point at one object of a scene (or one group) and at nothing else.

    for expression in expressions_of(scene, random, count=2): expression.text, expression.box

A text is made only where the layout leaves no doubt: a "left dog" stands clearly to the left of every other
dog, in whatever colour. Boxes are x0, y0, x1, y1 in pixels of the scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from demo.scenes.classes import load_classes
from demo.scenes.grammar import LEFT_OF, Box, ObjectGroup
from demo.scenes.reference import (
    CLEARLY_BIGGER,
    RIGHT_OF,
    alike,
    area,
    class_of,
    counted,
    definite,
    noun,
    position_of,
    related,
)

if TYPE_CHECKING:
    from demo.scenes.generator import Scene, SceneObject

APART = 0.5  # of the smaller object's extent: the least step between centres that "left" or "upper" may mean
LEVEL = 0.5  # of the smaller object's extent: the most that a row's centres may differ across
#: Where a single object of its class stands in the picture.
PLACES = {
    "upper left": "in the upper left corner",
    "top": "at the top",
    "upper right": "in the upper right corner",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "lower left": "in the lower left corner",
    "bottom": "at the bottom",
    "lower right": "in the lower right corner",
}
#: Direction → (word for one of two, word for one of more, words behind the noun).
EXTREMES = {
    (0, -1): ("left", "leftmost", "on the left"),
    (0, 1): ("right", "rightmost", "on the right"),
    (1, -1): ("upper", "topmost", "at the top"),
    (1, 1): ("lower", "bottommost", "at the bottom"),
}
CORNERS = {(-1, -1): "upper left", (1, -1): "upper right", (-1, 1): "lower left", (1, 1): "lower right"}


@dataclass(frozen=True)
class Expression:
    """``box``: what the text points at, in pixels of the scene."""

    text: str
    box: Box


def expressions_of(scene: Scene, random: Random, count: int) -> list[Expression]:
    """Return up to ``count`` different expressions, spread over the scene's objects in random order."""
    candidates: list[list[Expression]] = []
    for thing in scene.objects:
        texts = list(dict.fromkeys(_texts_of(thing, scene, random)))
        random.shuffle(texts)
        if texts:
            candidates.append([Expression(text, thing.box) for text in texts])
    for group in scene.groups:
        texts = list(_texts_of_group(group, scene.groups, random))
        if texts and random.random() < 0.4:
            candidates.append([Expression(random.choice(texts), group.box)])
    random.shuffle(candidates)
    found: list[Expression] = []
    while candidates and len(found) < count:
        for pile in candidates:
            if len(found) < count:
                found.append(pile.pop())
        candidates = [pile for pile in candidates if pile]
    return found


def _texts_of(thing: SceneObject, scene: Scene, random: Random) -> Iterator[str]:
    """Yield what can be said of one object."""
    groups, size = scene.groups, scene.image.shape[0]
    group = groups[thing.group]
    if any(other.name in alike(thing.name) for other in groups):
        return
    bare = noun(load_classes()[thing.class_index])
    same_name = [other for other in scene.objects if other.name == thing.name]
    if group.count == 1 and thing.colour:
        yield f"the {thing.colour} {bare}"
    if len(same_name) == 1:
        yield f"the {bare}"
        position = position_of(thing.box, size)
        if position is not None:
            yield f"the {bare} {PLACES[position]}"
    else:
        for place in _places_among(thing, same_name):
            yield place.format(bare)
        same_look = [other for other in same_name if other.colour == thing.colour]
        if thing.colour and 1 < len(same_look) < len(same_name):
            for place in _places_among(thing, same_look):
                yield place.format(f"{thing.colour} {bare}")
    if len(same_name) == 1 or (group.count == 1 and _only_related(group, groups)):
        for words, reference in _relations(group, groups, random):
            yield f"the {bare} {words} {reference}"
    others = [other for other in scene.objects if other is not thing]
    if others and area(thing.box) >= CLEARLY_BIGGER * max(area(other.box) for other in others):
        yield random.choice(("the biggest object", "the largest object", "the biggest thing"))
    if others and area(thing.box) * CLEARLY_BIGGER <= min(area(other.box) for other in others):
        yield "the smallest object"


def _texts_of_group(group: ObjectGroup, groups: Sequence[ObjectGroup], random: Random) -> Iterator[str]:
    """Yield what can be said of several objects at once."""
    if group.count == 1:
        return
    phrase = definite(group, groups, random)
    if phrase is None:
        return
    yield phrase
    if sum(other.name == group.name for other in groups) == 1:
        yield f"the {counted(class_of(group), group.count)}"


def _relations(group: ObjectGroup, groups: Sequence[ObjectGroup], random: Random) -> Iterator[tuple[str, str]]:
    """Yield (relation words, definite phrase) towards groups of other classes."""
    for other in groups:
        if other.name == group.name:
            continue
        words, reference = related(group, other), definite(other, groups, random)
        if words is None or reference is None:
            continue
        yield words, reference
        if words in (LEFT_OF, RIGHT_OF):
            yield f"on the {'left' if words == LEFT_OF else 'right'} of", reference


def _only_related(group: ObjectGroup, groups: Sequence[ObjectGroup]) -> bool:
    """Return whether a relation tells this group from others of its class: here, that there are none."""
    return all(other is group or other.name != group.name for other in groups)


def _places_among(thing: SceneObject, rivals: Sequence[SceneObject]) -> Iterator[str]:
    """Yield "the left {}", "the {} at the top", … where it tells an object from its rivals (itself among them)."""
    others = [other for other in rivals if other is not thing]
    for (axis, sign), (of_two, of_more, behind) in EXTREMES.items():
        if all(sign * _step(other, thing, axis) >= _reach(other, thing, axis) for other in others):
            yield f"the {of_two if len(rivals) == 2 else of_more} {{}}"
            yield f"the {{}} {behind}"
    if len(rivals) == 3:
        for axis in (0, 1):
            steps = sorted(_step(thing, other, axis) / _reach(thing, other, axis) for other in others)
            level = all(abs(_step(thing, o, 1 - axis)) <= LEVEL * 2 * _reach(thing, o, 1 - axis) for o in others)
            if steps[0] <= -1 and steps[1] >= 1 and level:
                yield "the middle {}"
                yield "the {} in the middle"
    if len(rivals) == 4:
        for (across, down), name in CORNERS.items():
            if _in_corner(thing, others, across, down):
                yield f"the {name} {{}}"


def _in_corner(thing: SceneObject, others: Sequence[SceneObject], across: int, down: int) -> bool:
    """Return whether an object lies clearly further into a corner than each other one.

    Further on one axis at least and not behind on the other; and each axis counts for one of them: in a row
    there is no upper left.
    """
    ahead = [
        [sign * _step(other, thing, axis) / _reach(other, thing, axis) for axis, sign in ((0, across), (1, down))]
        for other in others
    ]
    return all(max(pair) >= 1 and min(pair) >= -0.5 for pair in ahead) and all(
        any(pair[axis] >= 1 for pair in ahead) for axis in (0, 1)
    )


def _step(start: SceneObject, end: SceneObject, axis: int) -> float:
    """Return the way from centre to centre along an axis, pixels."""
    return (end.box[axis] + end.box[axis + 2] - start.box[axis] - start.box[axis + 2]) / 2


def _reach(one: SceneObject, two: SceneObject, axis: int) -> float:
    """Return the least step along an axis that counts as clear, pixels."""
    return APART * min(one.box[axis + 2] - one.box[axis], two.box[axis + 2] - two.box[axis])
