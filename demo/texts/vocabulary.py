"""The WordPiece vocabulary of the demo checkpoint: ``python demo/texts/vocabulary.py OUTPUT``.

Ids 0..998 are those of BERT's uncased vocabulary (special tokens and unused slots), so that code written
for published checkpoints finds ``[CLS]`` at 101 and ``[SEP]`` at 102 here too. From 999 on: characters and
their continuations, so that plain English never becomes ``[UNK]``; then whole words.
"""

from __future__ import annotations

import argparse
import string
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.scenes.classes import load_classes
from demo.scenes.grammar import ABOVE, COLOURS, COUNT_WORDS, LEFT_OF

FIRST_FREE_ID = 999
MAX_SIZE = 2000
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

# Pieces of inflected words, so that an unforeseen word is a few tokens and not one per letter.
SUFFIXES = "es ed er ers est ing ly al ion tion ment ness able ful"

# Words of questions, statements and answers over the scenes, by what they are for. A trained checkpoint
# carries its own vocab.txt; still, add new words at the end, so that ids keep their meaning.
FUNCTION_WORDS = {
    "questions": (
        "what which who whose how why when where many much kind sort type color colour colors colours "
        "number count object objects thing things item items animal animals answer question caption "
        "describe"
    ),
    "verbs": (
        "is are was were be been being am do does did done doing have has had having can could will "
        "would shall should may might must see sees seen look looks show shows shown stand stands lie "
        "lies name names find contain contains hold holds make makes come comes go goes stay stays"
    ),
    "answers": ("yes no not none true false maybe nothing something anything everything unknown"),
    "determiners": (
        "a an the this that these those some any all every each both either neither another other one "
        "ones first second third fourth last next few several most least more fewer less same "
        "different equal only just exactly single pair pairs half"
    ),
    "pronouns": ("i you he she it we they me him her us them my your his its our their there here itself"),
    "connectives": (
        "and or but nor if then than so because while although whether as also too with without instead except"
    ),
    "prepositions": (
        "of to in on at by for from into onto over under above below beside between behind before "
        "after near around along among across through inside outside against about up down off out"
    ),
    "positions": (
        "left right top bottom middle center centre corner side edge upper lower leftmost rightmost "
        "topmost bottommost horizontal vertical row column foreground background front back"
    ),
    "pictures": (
        "picture pictures image images photo photos scene scenes drawing video videos clip frame "
        "frames style shape shapes plain striped"
    ),
    "motion": (
        "moving moves move still appears appear disappears disappear enters leaves turns grows "
        "shrinks rises falls passes later finally during again toward towards away faster slower "
        "direction"
    ),
    "qualities": (
        "big bigger biggest large larger largest small smaller smallest long short tall wide far "
        "closer closest alone together empty full light dark bright grey gray pink"
    ),
    "categories": (
        "clothing drink electronics food fruit household music office place plant sky sport tool toy "
        "vegetable vehicle vehicles plants foods fruits drinks tools toys vegetables"
    ),
}


def build_vocabulary() -> list[str]:
    """Return the tokens by id. The same list every time; fewer than 2,000; no token twice."""
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [f"[unused{i}]" for i in range(99, 994)]
    if len(tokens) != FIRST_FREE_ID:
        raise ValueError(f"the reserved block ends at {len(tokens)}, not {FIRST_FREE_ID}")
    characters = string.digits + string.ascii_lowercase
    tokens += PUNCTUATION
    tokens += characters
    tokens += (f"##{character}" for character in characters)
    tokens += (f"##{suffix}" for suffix in SUFFIXES.split())
    tokens += _words()
    unique = list(dict.fromkeys(tokens))
    if len(unique) >= MAX_SIZE:
        raise ValueError(f"{len(unique)} tokens; keep the vocabulary below {MAX_SIZE}")
    return unique


def _words() -> list[str]:
    """Return all whole words: the grammar's own first, then those of questions, in a fixed order."""
    words = ["a", "an", "the", "and", *COUNT_WORDS, *COLOURS, *LEFT_OF.split(), *ABOVE.split()]
    for emoji_class in load_classes():
        words += f"{emoji_class.name} {emoji_class.plural} {emoji_class.noun_phrase}".split()
    for group in FUNCTION_WORDS.values():
        words += group.split()
    return words


def write_vocabulary(path: Path) -> int:
    """Write ``vocab.txt`` (one token a line, the line number is the id); return the number of tokens."""
    tokens = build_vocabulary()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="\n")
    return len(tokens)


def main() -> None:
    """Write the demo vocabulary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path, help="file to write, such as vocab.txt")
    arguments = parser.parse_args()
    print(f"{arguments.output}: {write_vocabulary(arguments.output)} tokens")


if __name__ == "__main__":
    main()
