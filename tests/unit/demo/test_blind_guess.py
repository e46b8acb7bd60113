"""Guessing from the words alone: it learns what wording gives away, and on our texts that is little."""

import pytest

from demo.splits import SPLITS
from demo.texts.blind_guess import BlindGuesser, accuracies, pattern_of


def test_names_are_blanked_out_longest_first():
    assert pattern_of("are there more hot dogs than dogs?") == "are there more @ than @?"
    assert pattern_of("is the pair of glasses above the red apple?") == "is the @ above the red @?"


def test_it_answers_from_the_text_then_the_pattern_then_the_kind():
    seen = [("count", "how many dogs are there?", "two")] * 10
    seen += [("count", "how many cats are there?", "one")] * 20
    seen += [("count", "how many things can you see?", "three")] * 40
    guesser = BlindGuesser(seen)
    assert guesser.guess("count", "how many dogs are there?") == "two"
    assert guesser.guess("count", "how many ants are there?") == "one"
    assert guesser.guess("count", "how many objects?") == "three"
    with pytest.raises(ValueError, match="no example of the kind 'where'"):
        guesser.guess("where", "where is it?")


def test_wording_gives_little_away():
    split = SPLITS["validation"]
    assert accuracies("nlvr", 1500, split)["all"] < 0.6
    entailment = accuracies("entail", 1500, split)
    assert entailment["open"] == 1  # of what no picture shows, the words do tell
    assert entailment["all"] < 0.74
    assert accuracies("vqa", 1500, split)["all"] < 0.48
