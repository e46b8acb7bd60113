"""Statements on two scenes, hypotheses on one and captions with a flaw: judged again by a naive reader."""

import re
from collections import Counter
from random import Random

import pytest
from scene_reading import at_place, number_in, objects_of, shows, stands_so

from demo.scenes.generator import SceneGenerator
from demo.scenes.grammar import parse_caption
from demo.scenes.sprites import TRAIN_STYLES
from demo.texts.negatives import FLAWS, flawed_caption, match_negatives
from demo.texts.statements import PAIR_FORMS, hypotheses_of, pair_statements
from demo.texts.vocabulary import build_vocabulary
from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS

SIDES = ("left", "right")


@pytest.fixture(scope="module")
def pairs():
    generator = SceneGenerator(TRAIN_STYLES, max_groups=4, seed=33)
    generator.group_weights, generator.count_weights = [0.4, 0.4, 0.1, 0.1], [0.5, 0.2, 0.2, 0.1]
    scenes = generator.batch(800, paired=True).scenes
    generator.coloured = 1.0
    scenes += generator.batch(300, paired=True).scenes
    return list(zip(scenes[::2], scenes[1::2], strict=True))


@pytest.fixture(scope="module")
def statements(pairs):
    random = Random(1)
    return [(pair, statement) for pair in pairs for statement in pair_statements(*pair, random, 8)]


@pytest.fixture(scope="module")
def hypotheses(pairs):
    random = Random(1)
    return [(scene, text) for pair in pairs for scene in pair for text in hypotheses_of(scene, random, 9)]


def judge_pair(pair, text):
    """Whether a statement is true of two scenes."""
    text = re.sub(r"^there (is|are) ", "", text)
    if match := re.fullmatch(r"both pictures show the same number of (.+)", text):
        return len(objects_of(pair[0], match[1])) == len(objects_of(pair[1], match[1]))
    if match := re.fullmatch(r"(?:both pictures show (.+)|(.+?)(?: can be seen)? in both pictures)", text):
        return all(shows(scene, match[1] or match[2]) for scene in pair)
    if match := re.fullmatch(r"(at least )?(?:only |exactly )?one of the pictures shows (.+)", text):
        shown = sum(shows(scene, match[2]) for scene in pair)
        return shown >= 1 if match[1] else shown == 1
    if match := re.fullmatch(r"neither picture shows (.+)", text):
        return not any(shows(scene, match[1]) for scene in pair)
    if match := re.fullmatch(r"no (.+) in the pictures", text):
        return not any(objects_of(scene, match[1]) for scene in pair)
    if match := re.fullmatch(r"(?:the two pictures show )?(.+) in all", text):
        return number_in(match[1]) == sum(len(objects_of(scene, match[1])) for scene in pair)
    if match := re.fullmatch(r"the (\w+) picture shows more (.+) than the (\w+) picture", text):
        one, two = (len(objects_of(pair[SIDES.index(match[i])], match[2])) for i in (1, 3))
        return one > two
    if match := re.fullmatch(r"(more|fewer) (.+) in the (\w+) picture than in the (\w+) picture", text):
        one, two = (len(objects_of(pair[SIDES.index(match[i])], match[2])) for i in (3, 4))
        return one > two if match[1] == "more" else one < two
    if match := re.fullmatch(r"in the (left|right) picture (.+)", text):
        return stands_so(pair[SIDES.index(match[1])], match[2])
    match = re.fullmatch(r"(?:(.+) in the (left|right) picture|the (left|right) picture shows (.+))", text)
    return shows(pair[SIDES.index(match[2] or match[3])], match[1] or match[4])


def judge(scene, text):
    """Whether a hypothesis is true of a scene; ``KeyError`` or ``AttributeError`` where it cannot be read."""
    text = text.removesuffix(" in the picture")
    if match := re.fullmatch(r"there are as many (.+) as (.+)", text):
        return len(objects_of(scene, match[1])) == len(objects_of(scene, match[2]))
    if match := re.fullmatch(r"there (?:is|are) (more|fewer) than (.+)", text):
        there, bound = len(objects_of(scene, match[2])), number_in(match[2])
        return there > bound if match[1] == "more" else there < bound
    if match := re.fullmatch(r"there are more (.+) than (.+)", text):
        return len(objects_of(scene, match[1])) > len(objects_of(scene, match[2]))
    if match := re.fullmatch(r"(?:there (?:is|are)|the picture shows) (.+)", text):
        return shows(scene, match[1])
    if match := re.fullmatch(r"(.+) (?:is|are) (?:in|on|at) the (.+?)( corner)?", text):
        return at_place(scene, match[2], objects_of(scene, match[1]))
    if " is " in text or " are " in text:
        if re.search(r"to the (left|right) of|above|below", text):
            return stands_so(scene, text)
        match = re.fullmatch(r"(.+) (?:is|are) (\w+)", text)
        return {o.colour for o in objects_of(scene, match[1])} == {match[2]}
    return caption_is_true(scene, text)


def caption_is_true(scene, text):
    named = Counter({(g.name, g.colour): g.count for g in parse_caption(text)})
    same = named == Counter((o.name, o.colour) for o in scene.objects)
    return same and (len(named) != 2 or stands_so(scene, text))


def test_statements_are_judged_right(statements):
    assert len(statements) > 3000
    for pair, statement in statements:
        truth = judge_pair(pair, statement.text)
        assert statement.label == NLVR_LABELS[truth], ([s.caption for s in pair], statement)


def test_statements_are_as_often_true_as_false_form_by_form(statements):
    labels = Counter((s.kind, s.label) for _, s in statements)
    assert {kind for kind, _ in labels} == set(PAIR_FORMS)
    for kind in PAIR_FORMS:
        true, false = labels[kind, "true"], labels[kind, "false"]
        assert true + false > 50 and 0.35 < true / (true + false) < 0.65, (kind, true, false)


def test_half_of_the_pairs_share_a_class(pairs):
    shared = [{o.name for o in a.objects} & {o.name for o in b.objects} for a, b in pairs[:400]]
    assert 0.5 < sum(map(bool, shared)) / len(shared) < 0.7


def test_hypotheses_are_judged_right(hypotheses):
    for scene, hypothesis in hypotheses:
        if hypothesis.label != "neutral":
            wanted = "entailment" if judge(scene, hypothesis.text) else "contradiction"
            assert hypothesis.label == wanted, (scene.caption, hypothesis)


def test_what_is_open_speaks_of_what_no_picture_shows(hypotheses):
    cues = (r"\b(before|later|first|outside|behind|name|my|his|her|our|will|comes?|she has|find|can see)\b",)
    for _, hypothesis in hypotheses:
        assert (hypothesis.label == "neutral") == any(re.search(cue, hypothesis.text) for cue in cues), hypothesis


def test_the_three_labels_are_equally_frequent_and_both_sides_of_each_form(hypotheses):
    labels = Counter(hypothesis.label for _, hypothesis in hypotheses)
    assert set(labels) == set(ENTAILMENT_LABELS)
    assert max(labels.values()) < 1.02 * min(labels.values())
    forms = Counter((h.kind, h.label) for _, h in hypotheses if h.label != "neutral")
    for kind in {kind for kind, _ in forms}:
        follows, excluded = forms[kind, "entailment"], forms[kind, "contradiction"]
        assert follows + excluded > 50 and 0.33 < follows / (follows + excluded) < 0.67, (kind, follows, excluded)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flawed_caption_is_wrong_in_one_thing(pairs, flaw):
    flawed = 0
    for scene in (scene for pair in pairs for scene in pair):
        text = flawed_caption(scene, Random(1), flaw)
        if text is None:
            continue
        flawed += 1
        right, wrong = parse_caption(scene.caption), parse_caption(text)
        assert text != scene.caption and len(right) == len(wrong) and not caption_is_true(scene, text)
        if flaw == "relation":
            assert wrong == right[::-1]
            continue
        (first, second), *more = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        assert not more
        assert [
            a == b
            for a, b in (
                (first.name, second.name),
                (first.count, second.count),
                (first.colour, second.colour),
            )
        ] == [flaw != "class", flaw != "count", flaw != "colour"], (scene.caption, text)
    assert flawed > 40


def test_negatives_of_a_scene_differ(pairs):
    scene = next(scene for pair in pairs for scene in pair if len(scene.groups) == 2)
    negatives = match_negatives(scene, Random(1), 6)
    assert len(set(negatives)) == 6 and scene.caption not in negatives
    assert negatives == match_negatives(scene, Random(1), 6)


def test_all_texts_are_whole_words(statements, hypotheses, pairs):
    tokens = set(build_vocabulary())
    texts = [s.text for _, s in statements] + [h.text for _, h in hypotheses]
    texts += [text for scene, _ in pairs for text in match_negatives(scene, Random(1), 3)]
    for text in texts:
        assert set(text.replace(",", "").split()) <= tokens, text
        assert len(text.split()) <= 28, text


def test_the_seed_fixes_all(pairs):
    pair = pairs[0]
    assert pair_statements(*pair, Random(1), 6) == pair_statements(*pair, Random(1), 6)
    assert hypotheses_of(pair[0], Random(1), 6) == hypotheses_of(pair[0], Random(1), 6)
