"""Questions over scenes: every answer found again by a naive reader, kinds and answers balanced."""

import re
from collections import Counter
from random import Random

import pytest
from scene_reading import NUMBERS, RELATION, at_place, centre, holds, hull, number_in, objects_of, stands_so

from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.questions import QUESTION_KINDS, question_of_kind, questions_of
from demo.texts.vocabulary import build_vocabulary


@pytest.fixture(scope="module")
def asked():
    """(scene, question) of many scenes, half of them with coloured things."""
    generator = SceneGenerator(TRAIN_STYLES, max_groups=4, seed=31)
    generator.group_weights, generator.count_weights = [0.4, 0.4, 0.1, 0.1], [0.5, 0.2, 0.2, 0.1]
    scenes = generator.batch(250).scenes
    generator.coloured = 1.0
    scenes += generator.batch(250).scenes
    random = Random(1)
    return [(scene, question) for scene in scenes for question in questions_of(scene, random, 8)]


@pytest.fixture(scope="module")
def judged(asked):
    """Many questions that are answered with yes or no."""
    random, scenes = Random(2), list({id(scene): scene for scene, _ in asked}.values())
    found = [question_of_kind(scene, random, kind) for scene in scenes for kind in ("yes-no", "compare") * 6]
    return [question for question in found if question is not None and question.answer in ("yes", "no")]


def answer_what(scene, text):
    if text in (
        "what is in the picture?",
        "what is shown in the picture?",
        "what can you see?",
        "what is this?",
        "what are these?",
    ):
        assert len(scene.groups) == 1
        assert ("these" not in text) or scene.groups[0].count > 1
        return {o.name for o in scene.objects}
    if match := re.fullmatch(r"(?:what kind of|what|which) (\w+) is in the picture\?", text):
        return {o.name for o in objects_of(scene, match[1])}
    if match := re.fullmatch(rf"what is ({RELATION}) (.+)\?", text):
        reference = hull(objects_of(scene, match[2]))
        axis, sign = (0, 1) if "left" in match[1] else (0, -1) if "right" in match[1] else (1, 1)
        sign = -1 if match[1] == "below" else sign
        beyond = [g for g in scene.groups if sign * (centre(reference)[axis] - centre(g.box)[axis]) > 0]
        assert all(holds(g.box, match[1], reference) for g in beyond)
        return {g.name for g in beyond}
    side = re.fullmatch(r"what is (on the left|on the right|at the top|at the bottom)\?", text)[1].split()[-1]
    axis, last = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}[side]
    ordered = sorted(scene.groups, key=lambda g: centre(g.box)[axis], reverse=last)
    words = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}[side]
    assert all(holds(ordered[0].box, words, other.box) for other in ordered[1:])
    return {ordered[0].name}


def answer_colour(scene, text):
    match = re.fullmatch(r"(?:what colour|what color|which colour) (?:is|are) the (.+?)( (?:on|at) the (\w+))?\?", text)
    things = objects_of(scene, match[1])
    if not match[3]:
        return {o.colour for o in things}
    axis, pick = {"left": (0, min), "right": (0, max), "top": (1, min), "bottom": (1, max)}[match[3]]
    return {pick(things, key=lambda o: centre(o.box)[axis]).colour}


def answer_count(scene, text):
    match = re.fullmatch(r"how many (.+?) (?:are there|are in the picture|can you see)\?", text)
    return {next(word for word, n in NUMBERS.items() if n == len(objects_of(scene, match[1])))}


def answer_where(scene, text):
    if match := re.fullmatch(r"(?:is|are) (.+?) (?:above or below|to the left or to the right of) (.+)\?", text):
        one, two = (hull(objects_of(scene, match[i])) for i in (1, 2))
        words = ("above", "below") if "above" in text else ("to the left of", "to the right of")
        return {w.split()[-2] if " " in w else w for w in words if holds(one, w, two)}
    if match := re.fullmatch(r"on which side of (.+) (?:is|are) (.+)\?", text):
        two, one = (hull(objects_of(scene, match[i])) for i in (1, 2))
        (x1, y1), (x2, y2) = centre(one), centre(two)
        assert abs(x2 - x1) > abs(y2 - y1)
        return {w.split()[-2] if " " in w else w for w in RELATION.split("|")[:2] if holds(one, w, two)}
    things = objects_of(scene, re.fullmatch(r"where (?:is|are) (.+)\?", text)[1])
    places = [f"{a} {b}" for a in ("upper", "lower") for b in ("left", "right")]
    return {p for p in (*places, "left", "right", "top", "bottom", "middle") if at_place(scene, p, things)}


def answer_yes_no(scene, text):
    body = text[:-1].removesuffix(" in the picture")
    if re.search(RELATION, body):
        truth = stands_so(scene, body)
    elif match := re.fullmatch(r"(?:is|are) there (more|fewer) than (.+)", body):
        there, bound = len(objects_of(scene, match[2])), number_in(match[2])
        truth = there > bound if match[1] == "more" else there < bound
    elif match := re.fullmatch(r"(?:is|are) there (.+)", body):
        number, there = number_in(match[1]), len(objects_of(scene, match[1]))
        truth = there > 0 if number is None else there == number
    else:
        match = re.fullmatch(r"(?:is|are) (the .+) (\w+)", body)
        truth = {o.colour for o in objects_of(scene, match[1])} == {match[2]}
    return {"yes" if truth else "no"}


def answer_compare(scene, text):
    if match := re.fullmatch(r"are there more (.+) or more (.+)\?", text):
        one, two = (len(objects_of(scene, match[i])) for i in (1, 2))
        assert one != two
        return {match[1] if one > two else match[2]}
    for pattern, true in (
        (r"are there more (.+) than (.+)\?", lambda one, two: one > two),
        (r"are there fewer (.+) than (.+)\?", lambda one, two: one < two),
        (r"are there as many (.+) as (.+)\?", lambda one, two: one == two),
        (r"is there the same number of (.+) and (.+)\?", lambda one, two: one == two),
    ):
        if match := re.fullmatch(pattern, text):
            return {"yes" if true(*(len(objects_of(scene, match[i])) for i in (1, 2))) else "no"}
    match = re.fullmatch(r"(?:which is (\w+), (.+) or (.+)|is (.+) (bigger|smaller|larger) than (.+))\?", text)
    word = match[1] or match[5]
    one, two = (objects_of(scene, phrase) for phrase in ((match[2], match[3]) if match[1] else (match[4], match[6])))
    sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in (hull(one), hull(two))]
    assert len(one) == len(two) == 1 and max(sizes) > 1.6 * min(sizes)
    first = (sizes[0] > sizes[1]) == (word != "smaller")
    if match[1]:
        return {(one if first else two)[0].name}
    return {"yes" if first else "no"}


READERS = {
    "what": answer_what,
    "colour": answer_colour,
    "count": answer_count,
    "where": answer_where,
    "yes-no": answer_yes_no,
    "compare": answer_compare,
}


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_true(asked, kind):
    of_kind = [(scene, question) for scene, question in asked if question.kind == kind]
    assert len(of_kind) > 200
    for scene, question in of_kind:
        assert READERS[kind](scene, question.text) == {question.answer}, (scene.caption, question)


def test_kinds_come_by_turns(asked):
    kinds = Counter(question.kind for _, question in asked)
    assert set(kinds) == set(QUESTION_KINDS)
    assert max(kinds.values()) < 0.3 * len(asked)


def test_yes_is_as_likely_as_no(asked):
    for kind in ("yes-no", "compare"):
        answers = Counter(q.answer for _, q in asked if q.kind == kind and q.answer in ("yes", "no"))
        assert 0.45 < answers["yes"] / answers.total() < 0.55, kind


@pytest.mark.parametrize(
    "start",
    [
        r"is there (a|an) ",
        r"are there any",
        r"are there more .* than",
        r"are there fewer",
        r"are there as many",
        r"is there the same",
        r"(is|are) there (exactly )?one",
        r"are there (exactly )?two",
        r"are there (exactly )?three",
        r"(is|are) the .* (left of|right of|above|below)",
        r"(is|are) the \w+ (red|green|blue)",
    ],
)
def test_the_words_of_a_question_do_not_tell_the_answer(judged, start):
    answers = Counter(q.answer for q in judged if re.match(start, q.text))
    assert answers.total() > 40 and 0.27 < answers["yes"] / answers.total() < 0.73, answers


def test_questions_are_whole_words_and_short(asked):
    tokens = set(build_vocabulary())
    for _, question in asked:
        words = question.text.replace("?", " ?").replace(",", " ,").split()
        assert question.text.endswith("?") and set(words) | set(question.answer.split()) <= tokens, question
        assert len(words) <= 28


def test_a_scene_is_asked_nothing_twice_and_the_seed_fixes_all(asked):
    scene = next(scene for scene, _ in asked if len(scene.groups) == 2)
    questions = questions_of(scene, Random(5), 12)
    assert len({question.text for question in questions}) == len(questions) == 12
    assert questions == questions_of(scene, Random(5), 12) != questions_of(scene, Random(6), 12)


def test_one_kind_can_be_asked_for(asked):
    scene = next(scene for scene, _ in asked if not any(group.colour for group in scene.groups))
    assert question_of_kind(scene, Random(1), "count").kind == "count"
    assert question_of_kind(scene, Random(1), "colour") is None
