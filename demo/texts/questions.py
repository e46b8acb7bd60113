"""Questions about a scene with answers that are exactly true.

    for question in questions_of(scene, random, count=4): question.text, question.answer

Texts are lower-case words of the demo vocabulary with a question mark at the end. The VQA model keeps the
mark: its tokeniser makes it a token of its own, "what is it ?" and "what is it?" are the same ids.

An object is answered with its class name whatever its number ("dog" for three dogs), numbers with words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo.scenes.grammar import ABOVE, COUNT_WORDS, LEFT_OF, ObjectGroup
from demo.scenes.reference import (
    BELOW,
    CATEGORY_PLURALS,
    CATEGORY_WORDS,
    CROSS,
    INVERSE,
    RIGHT_OF,
    SPARED,
    Picture,
    absent_class,
    alike,
    bigger,
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

QUESTION_KINDS = ("what", "colour", "count", "where", "yes-no", "compare")
TRIES = 12  # per question that is wanted; a scene that supports few questions gives fewer
ABSENT_COUNTED = 0.12  # chance that "how many" asks for what is not there

OF_ALL = ("what is in the picture?", "what is shown in the picture?", "what can you see?")
SIDES = {LEFT_OF: "on the left", RIGHT_OF: "on the right", ABOVE: "at the top", BELOW: "at the bottom"}
#: One-word answers to where one thing stands to another.
SIDE_WORDS = {LEFT_OF: "left", RIGHT_OF: "right", ABOVE: "above", BELOW: "below"}


@dataclass(frozen=True)
class Question:
    """``kind``: one of ``QUESTION_KINDS``."""

    kind: str
    text: str
    answer: str


def questions_of(scene: Picture, random: Random, count: int) -> list[Question]:
    """Return up to ``count`` different questions, of all kinds that the scene supports by turns.

    Kinds come in random order, and as often as each other as far as the scene has so many questions of a kind.
    """
    found: dict[str, Question] = {}
    kinds: list[str] = []
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        if not kinds:
            kinds = list(QUESTION_KINDS)
            random.shuffle(kinds)
        kind = kinds.pop()
        asked = ASKERS[kind](scene, random)
        if asked is not None:
            found.setdefault(asked[0], Question(kind, *asked))
    return list(found.values())


def question_of_kind(scene: Picture, random: Random, kind: str) -> Question | None:
    """Return one question of a kind; None where the scene supports none. Raises ``KeyError`` for other kinds."""
    for _ in range(TRIES):
        asked = ASKERS[kind](scene, random)
        if asked is not None:
            return Question(kind, *asked)
    return None


QuestionAndAnswer = tuple[str, str] | None


def _ask_what(scene: Picture, random: Random) -> QuestionAndAnswer:
    groups = scene.groups
    if random.random() < 0.3:
        return _ask_what_category(groups, random)
    if len(groups) == 1:
        this = "what is this?" if groups[0].count == 1 else "what are these?"
        return random.choice((*OF_ALL, this)), groups[0].name
    if random.random() < 0.4:
        return _ask_what_side(groups, random)
    reference = random.choice(groups)
    phrase = definite(reference, groups, random)
    words = random.choice(tuple(INVERSE))
    answer = _only_one(groups, words, reference)
    if phrase is None or answer is None:
        return None
    return f"what is {words} {phrase}?", answer.name


def _ask_what_category(groups: tuple[ObjectGroup, ...], random: Random) -> QuestionAndAnswer:
    category = class_of(random.choice(groups)).category
    if category not in CATEGORY_WORDS:
        return None
    members = category_members(groups, category)
    if members is None or len({member.name for member in members}) != 1:
        return None
    start = random.choice(("what", "which", "what kind of"))
    return f"{start} {category} is in the picture?", members[0].name


def _ask_what_side(groups: tuple[ObjectGroup, ...], random: Random) -> QuestionAndAnswer:
    words = random.choice(tuple(SIDES))
    chosen = next((g for g in groups if all(related(g, other) == words for other in groups if other is not g)), None)
    return None if chosen is None else (f"what is {SIDES[words]}?", chosen.name)


def _only_one(groups: tuple[ObjectGroup, ...], words: str, reference: ObjectGroup) -> ObjectGroup | None:
    """Return the group that clearly stands so, if no other's centre lies on that side at all."""
    axis, sign = (0 if words in (LEFT_OF, RIGHT_OF) else 1), (-1 if words in (LEFT_OF, ABOVE) else 1)
    there = [g for g in groups if g is not reference and sign * (g.centre[axis] - reference.centre[axis]) > 0]
    return there[0] if len(there) == 1 and related(there[0], reference) == words else None


def _ask_colour(scene: Picture, random: Random) -> QuestionAndAnswer:
    coloured = [group for group in scene.groups if group.colour]
    if not coloured:
        return None
    group = random.choice(coloured)
    if sum(other.name == group.name for other in scene.groups) > 1:
        return _ask_colour_of_side(scene.groups, group)
    thing = noun(class_of(group), group.count)
    word = random.choice(("what colour", "what color", "which colour"))
    return f"{word} {verb(group.count)} the {thing}?", group.colour


def _ask_colour_of_side(groups: tuple[ObjectGroup, ...], group: ObjectGroup) -> QuestionAndAnswer:
    """Two groups of one class: "what colour is the heart on the left?"."""
    twins = [other for other in groups if other.name == group.name and other is not group]
    words = related(group, twins[0]) if len(twins) == 1 else None
    if words is None:
        return None
    return f"what colour {verb(group.count)} the {noun(class_of(group), group.count)} {SIDES[words]}?", group.colour


def _ask_count(scene: Picture, random: Random) -> QuestionAndAnswer:
    groups = scene.groups
    chance = random.random()
    if chance < ABSENT_COUNTED:
        thing, number = noun(absent_class(groups, random), 2), 0
    elif chance < 0.3:
        return _ask_count_of_many(groups, random)
    else:
        group = random.choice(groups)
        if not _named_clearly(group, groups):
            return None
        colour = group.colour if random.random() < 0.5 else None
        thing, number = noun(class_of(group), 2, colour), count_of(groups, group.name, colour)
    form = random.choice(("how many {} are there?", "how many {} are in the picture?", "how many {} can you see?"))
    return form.format(thing), COUNT_WORDS[number]


def _ask_count_of_many(groups: tuple[ObjectGroup, ...], random: Random) -> QuestionAndAnswer:
    category = class_of(random.choice(groups)).category
    members = category_members(groups, category) if category in CATEGORY_PLURALS else None
    if members is not None and random.random() < 0.7:
        return f"how many {CATEGORY_PLURALS[category]} are there?", COUNT_WORDS[sum(g.count for g in members)]
    form = random.choice(("how many objects are there?", "how many things are in the picture?"))
    return form, COUNT_WORDS[sum(group.count for group in groups)]


def _ask_where(scene: Picture, random: Random) -> QuestionAndAnswer:
    groups = scene.groups
    group = random.choice(groups)
    phrase = definite(group, groups, random)
    if phrase is None:
        return None
    be = verb(group.count)
    if len(groups) == 1 or random.random() < 0.5:
        position = position_of(group.box, scene.image.shape[0])
        return None if position is None else (f"where {be} {phrase}?", position)
    other = random.choice([g for g in groups if g is not group])
    words, reference = related(group, other), definite(other, groups, random)
    if words is None or reference is None:
        return None
    if words in (ABOVE, BELOW):
        return f"{be} {phrase} above or below {reference}?", words
    if random.random() < 0.5:
        return f"{be} {phrase} to the left or to the right of {reference}?", SIDE_WORDS[words]
    return f"on which side of {reference} {be} {phrase}?", SIDE_WORDS[words]


def _ask_yes_no(scene: Picture, random: Random) -> QuestionAndAnswer:
    truth = random.random() < 0.5
    form = random.choice((_is_there, _is_there, _are_there_number, _is_related, _has_colour))
    text = form(scene.groups, random, truth)
    return None if text is None else (text, "yes" if truth else "no")


def _is_there(groups: tuple[ObjectGroup, ...], random: Random, truth: bool) -> str | None:
    group = random.choice(groups)
    emoji_class, colour = class_of(group), None
    if truth:
        colour = group.colour if random.random() < 0.5 else None
    elif group.colour and random.random() < 0.5:
        colour = other_colour(group, groups, random)
    else:
        emoji_class = absent_class(groups, random, group)
        if not emoji_class.coloured or random.random() < 0.5:
            colour = None
        else:
            colour = group.colour
    if random.random() < 0.3:
        return f"are there any {noun(emoji_class, 2, colour)}?"
    place = random.choice(("", "", " in the picture"))
    return f"is there {indefinite(emoji_class, colour)}{place}?"


def _are_there_number(groups: tuple[ObjectGroup, ...], random: Random, truth: bool) -> str | None:
    group = random.choice(groups)
    if not _named_clearly(group, groups):
        return None
    number = count_of(groups, group.name)
    if number == 1 and random.random() < SPARED:
        return None
    if random.random() < 0.35:
        limit, bound = bound_of(number, truth, random)
        return f"{verb(bound)} there {limit} {counted(class_of(group), bound)}?"
    if not truth:
        number = other_count(number, random)
    exactly = random.choice(("", "exactly "))
    return f"{verb(number)} there {exactly}{counted(class_of(group), number)}?"


def _is_related(groups: tuple[ObjectGroup, ...], random: Random, truth: bool) -> str | None:
    if len(groups) < 2:
        return None
    first, second = random.sample(groups, 2)
    words = related(first, second)
    subject, reference = definite(first, groups, random), definite(second, groups, random)
    if words is None or subject is None or reference is None:
        return None
    if not truth:
        words = random.choice((INVERSE[words], INVERSE[words], *CROSS[words]))
        if not surely_not(first, words, second):
            return None
    return f"{verb(first.count)} {subject} {words} {reference}?"


def _has_colour(groups: tuple[ObjectGroup, ...], random: Random, truth: bool) -> str | None:
    coloured = [g for g in groups if g.colour and sum(other.name == g.name for other in groups) == 1]
    if not coloured:
        return None
    group = random.choice(coloured)
    colour = group.colour if truth else other_colour(group, groups, random)
    return f"{verb(group.count)} the {noun(class_of(group), group.count)} {colour}?"


def _ask_compare(scene: Picture, random: Random) -> QuestionAndAnswer:
    groups = scene.groups
    if random.random() < 0.3:
        return _ask_size(groups, random)
    first = random.choice(groups)
    if not _named_clearly(first, groups):
        return None
    others = [g for g in groups if g.name != first.name and _named_clearly(g, groups)]
    other_class = class_of(random.choice(others)) if others else absent_class(groups, random, first)
    one, two = class_of(first), other_class
    if random.random() < 0.5:
        one, two = two, one
    names, numbers = (noun(one, 2), noun(two, 2)), (count_of(groups, one.name), count_of(groups, two.name))
    truth = random.random() < 0.5
    if others and numbers[0] != numbers[1] and random.random() < 0.4:
        return f"are there more {names[0]} or more {names[1]}?", names[numbers[0] < numbers[1]]
    for form in random.sample(COUNT_COMPARISONS, len(COUNT_COMPARISONS)):
        text, compared = form
        if compared(*numbers) == truth:
            if compared(1, 1) and not truth and not others:
                continue  # of what is not there, the numbers are never equal
            return text.format(*names), "yes" if truth else "no"
    return None


COUNT_COMPARISONS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("are there more {0} than {1}?", lambda one, two: one > two),
    ("are there fewer {0} than {1}?", lambda one, two: one < two),
    ("are there as many {0} as {1}?", lambda one, two: one == two),
    ("is there the same number of {0} and {1}?", lambda one, two: one == two),
)


def _ask_size(groups: tuple[ObjectGroup, ...], random: Random) -> QuestionAndAnswer:
    if len(groups) < 2:
        return None
    first, second = random.sample(groups, 2)
    large = bigger(first, second)
    one, two = definite(first, groups, random), definite(second, groups, random)
    if large is None or one is None or two is None:
        return None
    word, more = random.choice((("bigger", True), ("smaller", False), ("larger", True)))
    if first.name != second.name and random.random() < 0.5:
        answer = large if more else (second if large is first else first)
        return f"which is {word}, {one} or {two}?", answer.name
    return f"is {one} {word} than {two}?", "yes" if (large is first) == more else "no"


def _named_clearly(group: ObjectGroup, groups: tuple[ObjectGroup, ...]) -> bool:
    """Return whether no other group could be meant by the name as well."""
    return all(other.name not in alike(group.name) for other in groups)


ASKERS: dict[str, Callable[[Picture, Random], QuestionAndAnswer]] = {
    "what": _ask_what,
    "colour": _ask_colour,
    "count": _ask_count,
    "where": _ask_where,
    "yes-no": _ask_yes_no,
    "compare": _ask_compare,
}
