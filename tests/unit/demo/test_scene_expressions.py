"""Referring expressions: a naive reader finds the same box, and finds it beyond doubt."""

import re
from collections import Counter
from random import Random

import numpy as np
import pytest
from scene_reading import RELATION, at_place, centre, holds, hull, number_in, objects_of

from demo.scenes.classes import load_classes
from demo.scenes.generator import SceneGenerator
from demo.scenes.grammar import COLOURS
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.expressions import expressions_of
from demo.texts.vocabulary import build_vocabulary

EXTREMES = {
    "left": (0, -1),
    "leftmost": (0, -1),
    "right": (0, 1),
    "rightmost": (0, 1),
    "upper": (1, -1),
    "topmost": (1, -1),
    "top": (1, -1),
    "lower": (1, 1),
    "bottommost": (1, 1),
    "bottom": (1, 1),
}


@pytest.fixture(scope="module")
def expressed():
    generator = SceneGenerator(TRAIN_STYLES, max_groups=4, seed=32)
    generator.group_weights, generator.count_weights = [0.3, 0.4, 0.2, 0.1], [0.4, 0.2, 0.2, 0.2]
    scenes = generator.batch(250).scenes
    hearts, squares = (next(c.index for c in load_classes() if c.name == name) for name in ("heart", "square"))
    scenes += [generator.scene(classes) for classes in ((hearts, hearts), (squares, squares)) for _ in range(75)]
    random = Random(1)
    return [(scene, expression) for scene in scenes for expression in expressions_of(scene, random, 6)]


def extreme(things, axis, sign):
    """The one that is furthest out; its middle at least a third of an object ahead of the next."""
    first, second = sorted(things, key=lambda o: -sign * centre(o.box)[axis])[:2]
    step = abs(centre(first.box)[axis] - centre(second.box)[axis])
    assert step >= 0.33 * min(o.box[axis + 2] - o.box[axis] for o in (first, second))
    return first


def find(scene, text):
    """The box that a text means."""
    if match := re.fullmatch(r"the (biggest|largest|smallest) (?:object|thing)", text):
        areas = sorted(scene.objects, key=lambda o: (o.box[2] - o.box[0]) * (o.box[3] - o.box[1]))
        return areas[0 if match[1] == "smallest" else -1].box
    if match := re.fullmatch(rf"the (.+?) (?:on the (left|right) of|({RELATION})) (.+)", text):
        words = match[3] or f"to the {match[2]} of"
        (thing,), reference = objects_of(scene, match[1]), objects_of(scene, match[4])
        assert holds(thing.box, words, hull(reference)) and thing not in reference
        return thing.box
    if match := re.fullmatch(r"the (.+?) (?:on|at|in) the (.+)", text):
        things, place = objects_of(scene, match[1]), match[2].removesuffix(" corner")
        if len(things) == 1:
            assert at_place(scene, place, things)
            return things[0].box
        return middle(things).box if place == "middle" else extreme(things, *EXTREMES[place]).box
    if match := re.fullmatch(r"the (upper|lower) (left|right) (.+)", text):
        things = objects_of(scene, match[3])
        down, across = (1 if word in ("lower", "right") else -1 for word in match.groups()[:2])
        return max(things, key=lambda o: np.dot(centre(o.box), (across, down))).box
    if match := re.fullmatch(r"the (\w+most|left|right|upper|lower) (.+)", text):
        return extreme(objects_of(scene, match[2]), *EXTREMES[match[1]]).box
    if match := re.fullmatch(r"the middle (.+)", text):
        return middle(objects_of(scene, match[1])).box
    things = objects_of(scene, text)
    assert number_in(text.removeprefix("the ")) in (None, len(things)) and len({o.group for o in things}) == 1
    return hull(things)


def middle(things):
    """The one of three that stands between the others on the axis along which they spread."""
    assert len(things) == 3
    centres = np.array([centre(o.box) for o in things])
    axis = int(np.ptp(centres, 0).argmax())
    return things[int(centres[:, axis].argsort()[1])]


def test_the_box_is_where_the_text_points(expressed):
    assert len(expressed) > 1200
    for scene, expression in expressed:
        assert find(scene, expression.text) == pytest.approx(expression.box), (scene.caption, expression)


def test_all_kinds_of_texts_occur(expressed):
    texts = [expression.text for _, expression in expressed]
    for pattern in (
        r"the \w+",
        rf"the ({'|'.join(COLOURS)}) \w+",
        r"the left .+",
        r"the upper .+",
        r"the upper left .+",
        r"the topmost .+",
        r"the middle .+",
        r".+ to the left of the .+",
        r".+ on the right of the .+",
        r".+ above the .+",
        r".+ in the middle",
        r"the three .+",
        r"the biggest (object|thing)",
        rf"the (left|right|upper|lower) ({'|'.join(COLOURS)}) \w+",
    ):
        assert any(re.fullmatch(pattern, text) for text in texts), pattern


def test_texts_are_whole_words_and_not_said_twice(expressed):
    tokens = set(build_vocabulary())
    for _, expression in expressed:
        assert set(expression.text.split()) <= tokens and len(expression.text.split()) <= 18, expression
    said = Counter((id(scene), expression.text) for scene, expression in expressed)
    assert max(said.values()) == 1


def test_the_seed_fixes_all(expressed):
    scene = next(scene for scene, _ in expressed if len(scene.objects) > 4)
    first, again, other = (expressions_of(scene, Random(seed), 5) for seed in (1, 1, 2))
    assert first == again != other
