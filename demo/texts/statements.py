"""Statements about two scenes (NLVR2 style) and hypotheses about one (SNLI-VE style), exactly judged.

    pair_statements(left, right, random, count=2)   # "there is a dog in both pictures" → "true"
    hypotheses_of(scene, random, count=3)           # "the dog was here before" → "neutral"

Numbers are exact: "two dogs" is false of three. A hypothesis is judged by what the picture fixes, which is
everything inside it: which objects, how many, their colours where stated, where they stand. What follows from
that is "entailment", what it excludes is "contradiction". "neutral" is what no picture can tell: what was
before and will be later, who owns the things, what they are called, what is outside, behind and within.
Draw the two scenes with ``SceneGenerator.pair``: half of the forms need a class that both show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from demo.scenes.classes import EmojiClass, load_classes
from demo.scenes.grammar import COUNT_WORDS, ObjectGroup
from demo.scenes.reference import (
    CROSS,
    INVERSE,
    SPARED,
    absent_class,
    alike,
    class_of,
    count_of,
    counted,
    indefinite,
    noun,
    other_colour,
    other_count,
    related,
    surely_not,
    verb,
)
from demo.texts.hypotheses import contradicted, entailed, undecided
from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS

if TYPE_CHECKING:
    from demo.scenes.generator import Scene

TRIES = 12  # per statement that is wanted
UNEQUAL_SPARED = 0.5  # share of pairs with different numbers of which "the same number" is not said
SIDES = ("left", "right")


@dataclass(frozen=True)
class Statement:
    """About two pictures; ``kind``: one of ``PAIR_FORMS``; ``label``: one of ``NLVR_LABELS``."""

    kind: str
    text: str
    label: str


@dataclass(frozen=True)
class Hypothesis:
    """About one picture; ``kind``: the form of the text; ``label``: one of ``ENTAILMENT_LABELS``."""

    kind: str
    text: str
    label: str


def pair_statements(first: Scene, second: Scene, random: Random, count: int) -> list[Statement]:
    """Return up to ``count`` different statements on ``first`` (left) and ``second`` (right), half of them true."""
    found: dict[str, Statement] = {}
    kinds: list[str] = []
    truth = random.random() < 0.5
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        kinds = kinds or random.sample(tuple(PAIR_FORMS), len(PAIR_FORMS))
        kind = kinds.pop()
        text = PAIR_FORMS[kind]((first.groups, second.groups), random, truth)
        if text is not None and text not in found:
            found[text] = Statement(kind, text, NLVR_LABELS[truth])
            truth = not truth
    return list(found.values())


def hypotheses_of(scene: Scene, random: Random, count: int) -> list[Hypothesis]:
    """Return up to ``count`` different hypotheses, the three labels by turns in random order."""
    found: dict[str, Hypothesis] = {}
    labels: list[str] = []
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        labels = labels or random.sample(ENTAILMENT_LABELS, len(ENTAILMENT_LABELS))
        made = JUDGED[labels[-1]](scene, random)
        if made is not None and made[1] not in found:
            found[made[1]] = Hypothesis(*made, labels.pop())
    return list(found.values())


JUDGED = {"contradiction": contradicted, "neutral": undecided, "entailment": entailed}

Pair = tuple[Sequence[ObjectGroup], Sequence[ObjectGroup]]


def _shared(pair: Pair) -> list[EmojiClass]:
    """Return the classes that both pictures show, and that nothing else in them could be mistaken for."""
    names = {group.name for group in pair[1]}
    shared = {group.class_index for group in pair[0] if group.name in names}
    return [load_classes()[index] for index in sorted(shared) if _clear(load_classes()[index].name, pair)]


def _single(pair: Pair) -> list[tuple[int, EmojiClass]]:
    """Return (picture, class) of the classes that only one picture shows."""
    found = {
        (side, group.class_index)
        for side in (0, 1)
        for group in pair[side]
        if not count_of(pair[1 - side], group.name) and _clear(group.name, pair)
    }
    return [(side, load_classes()[index]) for side, index in sorted(found)]


def _clear(name: str, pair: Pair) -> bool:
    return all(group.name not in alike(name) for groups in pair for group in groups)


def _absent(pair: Pair, random: Random) -> EmojiClass:
    return absent_class([*pair[0], *pair[1]], random)


def _said_of_both(pair: Pair, random: Random, truth: bool) -> str | None:
    shared, single = _shared(pair), _single(pair)
    if not shared:
        return None
    if random.random() < 0.3:
        emoji_class = random.choice(shared)
        numbers = [count_of(groups, emoji_class.name) for groups in pair]
        number = random.choice(numbers)
        if (numbers[0] == numbers[1]) != truth or (max(numbers) == 1 and random.random() < SPARED):
            return None
        form = random.choice(("both pictures show {}", "there {be} {} in both pictures"))
        return form.format(counted(emoji_class, number), be=verb(number))
    if truth:
        emoji_class = random.choice(shared)
    else:
        emoji_class = random.choice(single)[1] if single and random.random() < 0.8 else _absent(pair, random)
    form = random.choice(("there is {} in both pictures", "both pictures show {}", "{} can be seen in both pictures"))
    return form.format(indefinite(emoji_class))


def _said_of_one(pair: Pair, random: Random, truth: bool) -> str | None:
    shared, single = _shared(pair), _single(pair)
    if single and random.random() < 0.3:
        side, emoji_class = random.choice(single)
        number = count_of(pair[side], emoji_class.name)
        if number == 1 and random.random() < SPARED:
            return None
        number = number if truth else other_count(number, random)
        return f"one of the pictures shows exactly {counted(emoji_class, number)}"
    if truth and not single:
        return None
    if truth:
        _, emoji_class = random.choice(single)
    else:
        emoji_class = random.choice(shared) if shared and random.random() < 0.7 else _absent(pair, random)
    form = random.choice(("only one of the pictures shows {}", "exactly one of the pictures shows {}"))
    return form.format(indefinite(emoji_class))


def _said_of_any(pair: Pair, random: Random, truth: bool) -> str | None:
    """At least one: half of these ask for a number."""
    present = [(0, emoji_class) for emoji_class in _shared(pair)] + _single(pair)
    if not present:
        return None
    side, emoji_class = random.choice(present)
    numbers = [count_of(groups, emoji_class.name) for groups in pair]
    if random.random() < 0.5:
        if numbers[side] == 1 and random.random() < SPARED:
            return None
        number = numbers[side] if truth else other_count(numbers[side], random)
        if (number in numbers) != truth:
            return None
        return f"at least one of the pictures shows exactly {counted(emoji_class, number)}"
    if not truth:
        emoji_class = _absent(pair, random)
    return f"at least one of the pictures shows {indefinite(emoji_class)}"


def _said_of_neither(pair: Pair, random: Random, truth: bool) -> str | None:
    present = _shared(pair) + [emoji_class for _, emoji_class in _single(pair)]
    if not truth and not present:
        return None
    emoji_class = _absent(pair, random) if truth else random.choice(present)
    form = random.choice(("neither picture shows {one}", "there are no {many} in the pictures"))
    return form.format(one=indefinite(emoji_class), many=noun(emoji_class, 2))


def _said_of_side(pair: Pair, random: Random, truth: bool) -> str | None:
    """Which picture shows it: the hard negative names the other picture."""
    single = _single(pair)
    if not single:
        return None
    side, emoji_class = random.choice(single)
    if not truth:
        if random.random() < 0.7:
            side = 1 - side
        else:
            emoji_class = _absent(pair, random)
    form = random.choice(("there is {} in the {} picture", "the {1} picture shows {0}"))
    return form.format(indefinite(emoji_class), SIDES[side])


def _said_of_count(pair: Pair, random: Random, truth: bool) -> str | None:
    side = random.randrange(2)
    group = random.choice(pair[side])
    if not _clear(group.name, pair):
        return None
    number = count_of(pair[side], group.name)
    if number == 1 and random.random() < SPARED:
        return None
    if not truth:
        elsewhere = count_of(pair[1 - side], group.name)
        number = elsewhere if elsewhere not in (0, number) else other_count(number, random)
    form = random.choice(("there {be} {n} in the {side} picture", "the {side} picture shows {exactly}{n}"))
    exactly = random.choice(("", "exactly "))
    return form.format(be=verb(number), n=counted(class_of(group), number), side=SIDES[side], exactly=exactly)


def _said_of_total(pair: Pair, random: Random, truth: bool) -> str | None:
    if random.random() < 0.3:
        number = sum(group.count for groups in pair for group in groups)
        number = number if truth else other_total(number, random)
        return f"the two pictures show {COUNT_WORDS[number]} objects in all"
    shared = _shared(pair)
    if not shared:
        return None
    emoji_class = random.choice(shared)
    numbers = [count_of(groups, emoji_class.name) for groups in pair]
    if sum(numbers) == 2 and random.random() < SPARED:
        return None
    number = sum(numbers) if truth else other_total(sum(numbers), random)
    form = random.choice(("there {be} {} in all", "the two pictures show {} in all"))
    return form.format(counted(emoji_class, number), be=verb(number))


def other_total(number: int, random: Random) -> int:
    """Return a sum that is off by one or two, at least 2."""
    return random.choice([n for n in (number - 2, number - 1, number + 1, number + 2) if 2 <= n < len(COUNT_WORDS)])


def _said_of_more(pair: Pair, random: Random, truth: bool) -> str | None:
    shared = _shared(pair)
    if shared and random.random() < 0.7:
        emoji_class = random.choice(shared)
        thing, numbers = noun(emoji_class, 2), [count_of(groups, emoji_class.name) for groups in pair]
    else:
        thing, numbers = "objects", [sum(group.count for group in groups) for groups in pair]
    if random.random() < 0.3:
        if (numbers[0] == numbers[1]) != truth or (not truth and random.random() < UNEQUAL_SPARED):
            return None
        return f"both pictures show the same number of {thing}"
    if numbers[0] == numbers[1] and (truth or random.random() < 0.7):
        return None  # "more" would be false too often
    more = numbers[0] < numbers[1]
    side = more if truth else (random.randrange(2) if numbers[0] == numbers[1] else not more)
    one, two = SIDES[side], SIDES[not side]
    if random.random() < 0.3:
        return f"there are fewer {thing} in the {two} picture than in the {one} picture"
    return random.choice(
        (
            f"the {one} picture shows more {thing} than the {two} picture",
            f"there are more {thing} in the {one} picture than in the {two} picture",
        )
    )


def _said_of_relation(pair: Pair, random: Random, truth: bool) -> str | None:
    side = random.randrange(2)
    if len(pair[side]) < 2:
        return None
    first, second = random.sample(pair[side], 2)
    words = related(first, second)
    if words is None or first.name == second.name or not (_clear(first.name, pair) and _clear(second.name, pair)):
        return None
    if not truth:
        words = random.choice((INVERSE[words], INVERSE[words], *CROSS[words]))
        if not surely_not(first, words, second):
            return None
    one, two = (f"the {noun(class_of(group), group.count)}" for group in (first, second))
    return f"in the {SIDES[side]} picture {one} {verb(first.count)} {words} {two}"


def _said_of_colour(pair: Pair, random: Random, truth: bool) -> str | None:
    side = random.randrange(2)
    coloured = [group for group in pair[side] if group.colour]
    if not coloured:
        return None
    group = random.choice(coloured)
    colour = group.colour
    if not truth:
        here = {other.colour for other in pair[side] if other.name == group.name}
        elsewhere = [g.colour for g in pair[1 - side] if g.name == group.name and g.colour not in here]
        colour = elsewhere[0] if elsewhere else other_colour(group, pair[side], random)
    form = random.choice(("there is {} in the {} picture", "the {1} picture shows {0}"))
    return form.format(indefinite(class_of(group), colour), SIDES[side])


PAIR_FORMS: dict[str, Callable[[Pair, Random, bool], str | None]] = {
    "both": _said_of_both,
    "one": _said_of_one,
    "any": _said_of_any,
    "neither": _said_of_neither,
    "side": _said_of_side,
    "count": _said_of_count,
    "total": _said_of_total,
    "more": _said_of_more,
    "relation": _said_of_relation,
    "colour": _said_of_colour,
}
