"""How much of each task can be answered without looking: guesses from the words of the text alone.

    python demo/texts/blind_guess.py

A guesser sees texts of training scenes with their answers and remembers the most frequent answer of each text,
of each text with its object names blanked out, and of each kind; it answers from the first of these that it
knows well. What a model scores above it on the test split, it owes to the picture.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from random import Random

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.scenes.classes import load_classes
from demo.scenes.generator import SceneGenerator
from demo.scenes.sprites import SPLIT_STYLES
from demo.splits import SPLITS, Split, pair_items, scene_items
from demo.texts.questions import questions_of
from demo.texts.statements import hypotheses_of, pair_statements

SEED = 1
ENOUGH = 8  # times that a text was seen before its own answers are trusted
TASKS = ("vqa", "nlvr", "entail")

Example = tuple[str, str, str]  # kind, text, answer


class BlindGuesser:
    """Majority votes over texts, over their patterns, and over kinds."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._votes: dict[str, Counter[str]] = defaultdict(Counter)
        for kind, text, answer in examples:
            for key in (text, pattern_of(text), f"[{kind}]"):
                self._votes[key][answer] += 1

    def guess(self, kind: str, text: str) -> str:
        """Return the most frequent answer. Raises ``ValueError`` for a kind that was never seen."""
        for key in (text, pattern_of(text), f"[{kind}]"):
            votes = self._votes.get(key)
            if votes and (votes.total() >= ENOUGH or key.startswith("[")):
                return votes.most_common(1)[0][0]
        raise ValueError(f"no example of the kind {kind!r} was given")


def pattern_of(text: str) -> str:
    """Return the text with every object name replaced: "is there a @?"."""
    return _names().sub("@", text)


@cache
def _names() -> re.Pattern[str]:
    names = {name for c in load_classes() for name in (c.name, c.plural, c.noun_phrase.split(" ", 1)[1])}
    return re.compile(rf"\b({'|'.join(sorted(map(re.escape, names), key=len, reverse=True))})\b")


def training_examples(task: str, scenes: int, split: Split) -> Iterator[Example]:
    """Draw texts as training does, with as many groups as the split has."""
    generator = SceneGenerator(SPLIT_STYLES, size=32, max_groups=len(split.group_weights), seed=SEED)
    generator.group_weights = list(split.group_weights)
    random = Random(SEED)
    for _ in range(scenes):
        first, second = generator.pair() if task == "nlvr" else (generator.scene(), None)
        if second is not None:
            yield from ((s.kind, s.text, s.label) for s in pair_statements(first, second, random, 2))
        elif task == "vqa":
            yield from ((q.kind, q.text, q.answer) for q in questions_of(first, random, 4))
        else:
            yield from ((h.kind, h.text, h.label) for h in hypotheses_of(first, random, 3))


def split_examples(task: str, split: Split) -> Iterator[Example]:
    """Return the texts of a split."""
    if task == "nlvr":
        return ((s.kind, s.text, s.label) for item in pair_items(split) for s in item.statements)
    if task == "vqa":
        return ((q.kind, q.text, q.answer) for item in scene_items(split) for q in item.questions)
    return ((h.kind, h.text, h.label) for item in scene_items(split) for h in item.hypotheses)


def accuracies(task: str, scenes: int, split: Split) -> dict[str, float]:
    """Return the share of right guesses on a split, in all ("all") and by kind."""
    guesser = BlindGuesser(training_examples(task, scenes, split))
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, text, answer in split_examples(task, split):
        right["all"].append(guesser.guess(kind, text) == answer)
        right[kind].append(right["all"][-1])
    return {kind: sum(guesses) / len(guesses) for kind, guesses in right.items()}


def main() -> None:
    """Print what can be guessed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", choices=SPLITS, help="(default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=10_000, help="scenes to learn from (default: %(default)s)")
    arguments = parser.parse_args()
    for task in TASKS:
        found = accuracies(task, arguments.scenes, SPLITS[arguments.split])
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(found.items()) if kind != "all")
        print(f"{task}: {found['all']:.1%} guessed without looking ({kinds})")


if __name__ == "__main__":
    main()
