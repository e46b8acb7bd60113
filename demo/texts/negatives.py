"""Captions that are wrong in exactly one thing: the hardest negatives of image-text matching.

match_negatives(scene, random, count=3)  # for "a dog to the left of two cats":
["a fox to the left of two cats", "a dog to the left of three cats", "two cats to the left of a dog"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from demo.scenes.grammar import ObjectGroup, phrase_of, relation
from demo.scenes.reference import absent_class, other_colour, other_count

if TYPE_CHECKING:
    from demo.scenes.generator import Scene

#: What may be wrong. A relation only where the caption states one: in scenes of two groups.
FLAWS = ("class", "count", "colour", "relation")
TRIES = 4  # per negative that is wanted


def match_negatives(scene: Scene, random: Random, count: int) -> list[str]:
    """Return up to ``count`` different captions, each with one class, count, colour or relation replaced.

    The flaws come by turns as far as the scene has room for them: no colour is wrong where none is stated.
    """
    found: dict[str, None] = {}
    flaws: list[str] = []
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        flaws = flaws or random.sample(FLAWS, len(FLAWS))
        text = flawed_caption(scene, random, flaws.pop())
        if text is not None:
            found.setdefault(text)
    return list(found)


def flawed_caption(scene: Scene, random: Random, flaw: str) -> str | None:
    """Return the scene's caption with this one thing wrong; None where the caption has no such thing."""
    ordered = _in_caption_order(scene.groups)
    if flaw == "relation":
        return _sentence(ordered[::-1], ordered) if len(ordered) == 2 else None
    position = random.randrange(len(ordered))
    changed = _changed(ordered[position], scene.groups, random, flaw)
    if changed is None:
        return None
    return _sentence([*ordered[:position], changed, *ordered[position + 1 :]], ordered)


def _changed(group: ObjectGroup, groups: Sequence[ObjectGroup], random: Random, flaw: str) -> ObjectGroup | None:
    if flaw == "count":
        return replace(group, count=other_count(group.count, random))
    if flaw == "colour":
        return replace(group, colour=other_colour(group, groups, random)) if group.colour else None
    other = absent_class(groups, random, group)
    if other.coloured != (group.colour is not None):
        return None  # a colour would come or go with the class: two things at once
    return replace(group, class_index=other.index, name=other.name)


def _in_caption_order(groups: Sequence[ObjectGroup]) -> list[ObjectGroup]:
    if len(groups) == 2:
        return list(relation(*groups)[1:])
    return sorted(groups, key=lambda group: group.centre[0])


def _sentence(said: Sequence[ObjectGroup], placed: Sequence[ObjectGroup]) -> str:
    """Return the caption's sentence with the groups as said, joined by the relation of those really placed."""
    phrases = [phrase_of(group) for group in said]
    if len(phrases) == 1:
        return phrases[0]
    if len(phrases) == 2:
        return f"{phrases[0]} {relation(*placed)[0]} {phrases[1]}"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
