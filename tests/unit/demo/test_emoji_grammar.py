"""Captions of emoji scenes: one right sentence, and a parser that reads it back."""

from dataclasses import dataclass, replace

import pytest

from demo.scenes.classes import load_classes
from demo.scenes.grammar import (
    AmbiguousLayout,
    NamedGroup,
    ObjectGroup,
    caption_of,
    exact_match,
    noun_phrase,
    object_recall,
    parse_caption,
)

CLASSES = {c.name: c for c in load_classes()}


@dataclass(frozen=True)
class Truth:
    groups: tuple


def group(name, centre, count=1, colour=None, side=20):
    x, y = centre
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return ObjectGroup(CLASSES[name].index, name, colour, count, box)


@pytest.mark.parametrize(
    ("name", "colour", "count", "phrase"),
    [
        ("dog", None, 1, "a dog"),
        ("ant", None, 1, "an ant"),
        ("dog", None, 3, "three dogs"),
        ("apple", "red", 1, "a red apple"),
        ("book", "orange", 1, "an orange book"),
        ("apple", "red", 2, "two red apples"),
        ("moon", None, 1, "the moon"),
        ("glasses", None, 4, "four pairs of glasses"),
        ("beer", None, 1, "a mug of beer"),
    ],
)
def test_noun_phrases(name, colour, count, phrase):
    assert noun_phrase(CLASSES[name], colour, count) == phrase


def test_every_phrase_of_the_grammar_reads_back():
    for emoji_class in load_classes():
        for colour in {drawing.colour for drawing in emoji_class.drawings}:
            for count in range(1, 5):
                phrase = noun_phrase(emoji_class, colour, count)
                assert parse_caption(phrase) == [NamedGroup(emoji_class.name, colour, count)], phrase


def test_no_two_phrases_are_the_same():
    phrases = [noun_phrase(c, d.colour, count) for c in load_classes() for d in c.drawings for count in range(1, 5)]
    drawings = {(c.name, d.colour) for c in load_classes() for d in c.drawings}
    assert len(set(phrases)) == 4 * len(drawings)


def test_count_outside_the_grammar_is_refused():
    with pytest.raises(ValueError, match=r"count must be 1\.\.20, not 0"):
        noun_phrase(CLASSES["dog"], None, 0)


def test_two_groups_are_related_on_the_longer_axis():
    dog, cat = group("dog", (30, 60)), group("cat", (90, 80))
    assert caption_of([cat, dog], 128) == "a dog to the left of a cat"
    below = group("cat", (40, 100))
    assert caption_of([below, dog], 128) == "a dog above a cat"


@pytest.mark.parametrize(
    "second",
    [
        group("cat", (70, 100)),  # as far to the right as below
        group("cat", (45, 60)),  # overlaps on the axis that decides
        group("cat", (66, 90)),  # 36 across, 30 down: less than 1.35 times
    ],
)
def test_unclear_pairs_are_refused(second):
    with pytest.raises(AmbiguousLayout):
        caption_of([group("dog", (30, 60)), second], 128)


def test_three_and_four_groups_are_listed_from_left_to_right():
    groups = [group("cat", (90, 20)), group("ant", (20, 90), count=2), group("heart", (50, 30), colour="red")]
    assert caption_of(groups, 128) == "two ants, a red heart and a cat"
    groups.append(group("moon", (110, 100)))
    assert caption_of(groups, 128) == "two ants, a red heart, a cat and the moon"
    with pytest.raises(AmbiguousLayout):
        caption_of([*groups[:3], group("moon", (95, 100))], 128)


def test_the_parser_prefers_the_longest_name():
    assert [g.name for g in parse_caption("a hot dog, a police car and a christmas tree")] == [
        "hot dog",
        "police car",
        "christmas tree",
    ]
    assert parse_caption("Wine glasses above 2 teddy bears.") == [
        NamedGroup("wine glass", None, None),
        NamedGroup("teddy bear", None, None),
    ]
    assert parse_caption("nothing that we know") == [] == parse_caption("")


def test_object_recall_counts_groups_named_in_either_number():
    scene = Truth((group("dog", (30, 60), count=3), group("apple", (90, 60), colour="red")))
    assert object_recall("three dogs to the left of a red apple", scene) == 1
    assert object_recall("a dog to the left of a green apple", scene) == 1
    assert object_recall("a hot dog above two apples", scene) == 0.5
    assert object_recall("a cat", scene) == 0
    twice = Truth((replace(scene.groups[1], colour="green"), scene.groups[1]))
    assert object_recall("a green apple", twice) == 0.5


def test_exact_match_ignores_case_spaces_and_punctuation_only():
    assert exact_match("A dog , a cat and an ant .", "a dog, a cat and an ant")
    assert not exact_match("a dog above a cat", "a cat above a dog")
