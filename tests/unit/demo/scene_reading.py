"""A second, naive reader of texts about scenes: it looks at the objects' boxes and at nothing that made the texts."""

from __future__ import annotations

import re

from demo.scenes.classes import load_classes
from demo.scenes.grammar import COLOURS, COUNT_WORDS

NUMBERS = {word: number for number, word in enumerate(COUNT_WORDS)}
RELATION = r"to the left of|to the right of|above|below"


def _nouns() -> dict[str, tuple[str, str | None]]:
    found = {}
    for emoji_class in load_classes():
        for bare in (emoji_class.plural, emoji_class.noun_phrase.split(" ", 1)[1]):
            for colour in (None, *COLOURS):
                found[f"{colour} {bare}" if colour else bare] = (emoji_class.name, colour)
    return found


NOUNS = _nouns()
CATEGORIES = {c.name: c.category for c in load_classes()}
WHOLE = {
    "object": None,
    "thing": None,
    "animal": "animal",
    "vehicle": "vehicle",
    "shape": "shape",
    "fruit": "fruit",
    "vegetable": "vegetable",
}


def objects_of(scene, phrase):
    """The objects that a noun phrase names, its article or number stripped."""
    phrase = re.sub(r"^(a|an|the|any|exactly)\s+", "", phrase.strip())
    phrase = re.sub(rf"^(exactly )?({'|'.join(COUNT_WORDS)})\s+", "", phrase)
    if phrase.removesuffix("s") in WHOLE:
        category = WHOLE[phrase.removesuffix("s")]
        return [o for o in scene.objects if category in (None, CATEGORIES[o.name])]
    name, colour = NOUNS[phrase]
    return [o for o in scene.objects if o.name == name and colour in (None, o.colour)]


def hull(objects):
    """The box around objects."""
    boxes = [o.box for o in objects]
    return (*(min(b[i] for b in boxes) for i in (0, 1)), *(max(b[i] for b in boxes) for i in (2, 3)))


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def holds(first, words, second):
    """Whether a box lies wholly beyond another in the direction named."""
    if words == "to the left of":
        return first[2] <= second[0]
    if words == "above":
        return first[3] <= second[1]
    return holds(second, {"to the right of": "to the left of", "below": "above"}[words], first)


def stands_so(scene, text):
    """Whether "the dogs is/are above the cat", or "the dogs above the cat", is true."""
    match = re.fullmatch(rf"(?:is|are)? ?(.+?)(?: is| are)? ({RELATION}) (.+)", text)
    one, words, two = match.groups()
    return holds(hull(objects_of(scene, one)), words, hull(objects_of(scene, two)))


def at_place(scene, place, objects):
    """Whether "upper left", "top", … is where the middle of objects is, thirds drawn generously."""
    x, y = (value / scene.image.shape[0] for value in centre(hull(objects)))
    wanted = {"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "upper": y < 0.4, "bottom": y > 0.6, "lower": y > 0.6}
    words = [word for word in place.split() if word in wanted]
    if not words:
        assert "middle" in place
        return 0.4 < x < 0.6 and 0.4 < y < 0.6
    across = 0.4 < x < 0.6 or bool({"left", "right"} & set(words))
    down = 0.4 < y < 0.6 or bool({"top", "upper", "bottom", "lower"} & set(words))
    return all(wanted[word] for word in words) and across and down


def number_in(text):
    """The number word at the head of a phrase, else None."""
    match = re.match(rf"(?:exactly )?({'|'.join(COUNT_WORDS)}) ", text)
    return NUMBERS[match.group(1)] if match else None


def shows(scene, phrase):
    """Whether a scene shows "a dog", "no dogs", or exactly "three dogs"."""
    if phrase.startswith("no "):
        return not objects_of(scene, phrase[3:])
    number, found = number_in(phrase), len(objects_of(scene, phrase))
    return found > 0 if number is None else found == number
