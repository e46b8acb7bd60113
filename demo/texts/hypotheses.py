"""Texts that follow from a scene, that it excludes, and that it leaves open.

The rule stands in ``scene_statements``: the picture decides about everything inside it and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from demo.scenes.reference import (
    CROSS,
    INVERSE,
    SPARED,
    absent_class,
    alike,
    bound_of,
    category_members,
    class_of,
    count_of,
    counted,
    definite,
    indefinite,
    noun,
    other_colour,
    other_count,
    position_of,
    related,
    surely_not,
    verb,
)
from demo.texts.expressions import PLACES
from demo.texts.negatives import FLAWS, flawed_caption

if TYPE_CHECKING:
    from demo.scenes.generator import Scene

#: A place in the picture and those that it excludes, of its own kind as far as may be.
OTHER_PLACES = {
    "left": ("right",),
    "right": ("left",),
    "top": ("bottom",),
    "bottom": ("top",),
    "upper left": ("upper right", "lower left", "lower right", "middle"),
    "upper right": ("upper left", "lower left", "lower right", "middle"),
    "lower left": ("upper left", "upper right", "lower right", "middle"),
    "lower right": ("upper left", "upper right", "lower left", "middle"),
    "middle": ("upper left", "upper right", "lower left", "lower right"),
}

#: {the}: a definite phrase, {be}, {has}, {a}: an indefinite phrase, {many}: a plural, of a class that is there;
#: {other}, {others}: of one that is not.
OPEN_FORMS = (
    "{the} {was} here before",
    "{the} {was} bigger before",
    "{the} {was} not here before",
    "{the} {was} here first",
    "{the} will be here later",
    "{the} will not be here later",
    "{the} will stay here",
    "{the} will move to the left",
    "{the} will move to the right",
    "{the} {comes} from far away",
    "{the} {has} a name",
    "{the} {has} no name",
    "{this} my {noun}",
    "{this} his {noun}",
    "{this} her {noun}",
    "{this} our {noun}",
    "she has another {one}",
    "he had two {many} before",
    "they will find another {one}",
    "there are more {many} outside the picture",
    "there is another {one} outside the picture",
    "there are no {many} outside the picture",
    "there was {a} here before",
    "there was {other} here before",
    "there will be {other} here later",
    "there is {other} outside the picture",
    "there are {others} outside the picture",
    "{the} can see {other}",
    "there is something behind {the}",
    "there is nothing behind {the}",
    "{other} is behind the picture",
    "{other} was to the left of {the} before",
    "{the} will be above {other} later",
)

#: Share of scenes without such a thing of which that is not said: as many texts say so wrongly as rightly.
EQUAL_SPARED = 0.7  # likewise of "more" where the numbers are equal
CATEGORY_SPARED = {"animal": 0.57, "vehicle": 0.89}

Made = tuple[str, str] | None


def entailed(scene: Scene, random: Random) -> Made:
    """Return (kind, text) of something that is true of the scene; None where the drawn form does not fit it."""
    return _judged(scene, random, True)


def contradicted(scene: Scene, random: Random) -> Made:
    """Return (kind, text) of something that is false of the scene; None where the drawn form does not fit it."""
    return _judged(scene, random, False)


def undecided(scene: Scene, random: Random) -> Made:
    """Return (kind, text) of something that the scene leaves open; None where a group has no clear name."""
    group = random.choice(scene.groups)
    phrase = definite(group, scene.groups, random)
    if phrase is None:
        return None
    single, emoji_class, other = group.count == 1, class_of(group), absent_class(scene.groups, random, group)
    thing = noun(emoji_class, group.count)
    return "open", random.choice(OPEN_FORMS).format(
        the=phrase,
        was="was" if single else "were",
        comes="comes" if single else "come",
        has="has" if single else "have",
        this="this is" if single else "these are",
        noun=thing,
        one=noun(emoji_class),
        many=noun(emoji_class, 2),
        a=indefinite(emoji_class),
        other=indefinite(other),
        others=noun(other, 2),
    )


def _judged(scene: Scene, random: Random, truth: bool) -> Made:
    kind = random.choice(tuple(FORMS))
    text = FORMS[kind](scene, random, truth)
    return None if text is None else (kind, text)


def _is_there(scene: Scene, random: Random, truth: bool) -> str | None:
    group = random.choice(scene.groups)
    colour = group.colour if random.random() < 0.5 else None
    emoji_class = class_of(group)
    if not truth:
        if group.colour and random.random() < 0.5:
            colour = other_colour(group, scene.groups, random)
        else:
            emoji_class, colour = absent_class(scene.groups, random, group), None
    form = random.choice(("there is {}", "there is {} in the picture", "the picture shows {}"))
    return form.format(indefinite(emoji_class, colour))


def _is_missing(scene: Scene, random: Random, truth: bool) -> str | None:
    group = random.choice(scene.groups)
    emoji_class = absent_class(scene.groups, random, group) if truth else class_of(group)
    form = random.choice(("there is no {one}", "there are no {many}", "the picture shows no {many}"))
    return form.format(one=noun(emoji_class), many=noun(emoji_class, 2))


def _has_number(scene: Scene, random: Random, truth: bool) -> str | None:
    group = random.choice(scene.groups)
    if any(other.name in alike(group.name) for other in scene.groups):
        return None
    number = count_of(scene.groups, group.name)
    if number == 1 and random.random() < SPARED:
        return None
    if random.random() < 0.3:
        limit, bound = bound_of(number, truth, random)
        return f"there {verb(bound)} {limit} {counted(class_of(group), bound)}"
    if not truth:
        number = other_count(number, random)
    form = random.choice(("there {} {}", "there {} exactly {}", "there {} {} in the picture"))
    return form.format(verb(number), counted(class_of(group), number))


def _is_related(scene: Scene, random: Random, truth: bool) -> str | None:
    if len(scene.groups) < 2:
        return None
    first, second = random.sample(scene.groups, 2)
    words = related(first, second)
    one, two = definite(first, scene.groups, random), definite(second, scene.groups, random)
    if words is None or one is None or two is None:
        return None
    if not truth:
        words = random.choice((INVERSE[words], INVERSE[words], *CROSS[words]))
        if not surely_not(first, words, second):
            return None
    return f"{one} {verb(first.count)} {words} {two}"


def _has_colour(scene: Scene, random: Random, truth: bool) -> str | None:
    coloured = [g for g in scene.groups if g.colour and sum(other.name == g.name for other in scene.groups) == 1]
    if not coloured:
        return None
    group = random.choice(coloured)
    colour = group.colour if truth else other_colour(group, scene.groups, random)
    return f"the {noun(class_of(group), group.count)} {verb(group.count)} {colour}"


def _has_kind(scene: Scene, random: Random, truth: bool) -> str | None:
    category, phrase = random.choice((("animal", "an animal"), ("vehicle", "a vehicle")))
    members = category_members(scene.groups, category)
    if members is None or bool(members) != truth or (not truth and random.random() < CATEGORY_SPARED[category]):
        return None
    form = random.choice(("there is {}", "the picture shows {}", "there is {} in the picture"))
    return form.format(phrase)


def _has_place(scene: Scene, random: Random, truth: bool) -> str | None:
    group = random.choice(scene.groups)
    phrase, place = definite(group, scene.groups, random), position_of(group.box, scene.image.shape[0])
    if phrase is None or place is None:
        return None
    if not truth:
        place = random.choice(OTHER_PLACES[place])
    return f"{phrase} {verb(group.count)} {PLACES[place]}"


def _has_more(scene: Scene, random: Random, truth: bool) -> str | None:
    groups = scene.groups
    first = random.choice(groups)
    others = [group for group in groups if group.name != first.name]
    if any(other.name in alike(group.name) for group in groups for other in groups):
        return None
    second = class_of(random.choice(others)) if others else absent_class(groups, random, first)
    names = [noun(class_of(first), 2), noun(second, 2)]
    numbers = [count_of(groups, first.name), count_of(groups, second.name)]
    if numbers[0] == numbers[1] and not truth and random.random() < EQUAL_SPARED:
        return None
    if others and random.random() < 0.4:
        return f"there are as many {names[0]} as {names[1]}" if (numbers[0] == numbers[1]) == truth else None
    if random.random() < 0.5:
        names, numbers = names[::-1], numbers[::-1]
    return f"there are more {names[0]} than {names[1]}" if (numbers[0] > numbers[1]) == truth else None


def _is_caption(scene: Scene, random: Random, truth: bool) -> str | None:
    if truth:
        return scene.caption
    flawed = (flawed_caption(scene, random, flaw) for flaw in random.sample(FLAWS, len(FLAWS)))
    return next(filter(None, flawed), None)


FORMS: dict[str, Callable[[Scene, Random, bool], str | None]] = {
    "existence": _is_there,
    "absence": _is_missing,
    "count": _has_number,
    "relation": _is_related,
    "colour": _has_colour,
    "category": _has_kind,
    "place": _has_place,
    "more": _has_more,
    "caption": _is_caption,
}
