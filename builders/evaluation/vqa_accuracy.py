"""VQA accuracy as the official scorer computes it (Antol et al. 2015, arXiv 1505.00468; visualqa.org/evaluation).

An answer's accuracy is min(1, n / 3), n being how many of the people asked gave it, averaged over all ways to leave
one of them out. Where the people disagree, both sides are first made alike: punctuation is removed, articles are
dropped, number words become digits, apostrophes of contractions are put back. Quirks of the official program are
kept where they change a score; what was given by everyone alike is compared as it stands, as there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ENOUGH = 3  # people who gave an answer that then counts as entirely right
ARTICLES = frozenset({"a", "an", "the"})
_COUNTS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_COUNTS.split())} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
#: A full stop that no digit follows.
_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # replaced in one answer: the official call passes a flag in the place of this number
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

#: Right spellings whose apostrophe, or one of whose apostrophes, people leave out.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    spelled[:place] + spelled[place + 1 :]: spelled
    for spelled in _CONTRACTIONS.split()
    for place, letter in enumerate(spelled)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


@dataclass(frozen=True)
class VqaScore:
    """Shares of 1."""

    overall: float
    by_kind: dict[str, float]


def normalised(answer: str) -> str:
    """An answer without what does not count: punctuation, articles, spelled numbers, missing apostrophes."""
    return _words(_without_punctuation(answer))


def accuracy(answer: str, given: Sequence[str]) -> float:
    """Accuracy (0…1) of one answer against those that people gave, as many as were asked.

    Raises ValueError when nobody was asked. With a single truth it can only be 0: use `matches` then.
    """
    if not given:
        raise ValueError("the question has no answers to be scored against")
    answer, given = _stripped(answer), [_stripped(each) for each in given]
    if len(set(given)) > 1:
        answer, given = normalised(answer), [normalised(each) for each in given]
    same = sum(each == answer for each in given)
    return sum(min(1.0, (same - (each == answer)) / ENOUGH) for each in given) / len(given)


def matches(answer: str, truth: str) -> bool:
    """Whether an answer is the one true one, for data sets that have just one."""
    return normalised(_stripped(answer)) == normalised(_stripped(truth))


def score(answers: Iterable[tuple[str, Sequence[str], str]]) -> VqaScore:
    """Mean accuracy over (answer, answers given, kind of question), and of each kind that is not blank."""
    found: dict[str, list[float]] = defaultdict(list)
    everything = []
    for answer, given, kind in answers:
        value = accuracy(answer, given) if len(given) > 1 else float(matches(answer, given[0]))
        everything.append(value)
        if kind:
            found[kind].append(value)
    if not everything:
        raise ValueError("there are no answers to be scored")
    return VqaScore(float(np.mean(everything)), {kind: float(np.mean(values)) for kind, values in found.items()})


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """A mark beside a blank goes; one between letters becomes a blank, unless a number has a comma in it."""
    changed = text
    for mark in PUNCTUATION:
        goes = f"{mark} " in text or f" {mark}" in text or _DIGIT_COMMA_DIGIT.search(text)
        changed = changed.replace(mark, "" if goes else " ")
    return _STOP.sub("", changed, count=_MOST_STOPS)


def _words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
