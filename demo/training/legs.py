"""The legs of the demo's curriculum: which objectives each trains, on what, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True)
class Mixture:
    """How many texts of each task go with a batch of images; `statements` are over pairs of images."""

    captions: int = 24
    questions: int = 48
    expressions: int = 28
    hypotheses: int = 24
    statements: int = 20
    contrasted: int = 32  #: images contrasted with others' captions, and matched with their own
    matches: int = 16  #: captions wrong in one thing, and as many of other images
    masked: int = 24
    prefixes: int = 32

    def rows(self) -> dict[str, slice]:
        """Where each kind of text is among `row_ids`, in this order; statements twice, for either image."""
        sizes = {
            "captions": self.contrasted,
            "wrong": self.matches,
            "questions": self.questions,
            "expressions": self.expressions,
            "hypotheses": self.hypotheses,
            "statements_left": self.statements,
            "statements_right": self.statements,
        }
        return {
            name: slice(end - size, end)
            for (name, size), end in zip(sizes.items(), accumulate(sizes.values()), strict=True)
        }


PAIRS = Mixture(questions=0, expressions=0, hypotheses=0, statements=0)  # images and captions alone


@dataclass(frozen=True)
class Leg:
    """One leg of the curriculum."""

    learning_rate: float
    vision_learning_rate: float
    weights: dict[str, float]  #: of the objectives; those that are not named do not run
    batch_size: int = 64
    augmented: float = 0.6  #: share of batches whose sprites are augmented
    kept_patches: int | None = 24  #: work on so many patches, those of objects first
    mixture: Mixture | None = field(default_factory=Mixture)
    max_groups: int = 2
    max_count: int = 4


LABELS = {"patches": 2.0, "classes": 1.0, "places": 20.0, "counts": 0.5}
WORDS = {"words": 0.5, "looks": 0.5, "named": 1.0, "contrast": 1.0, "matching": 1.0}
PRETRAINING = LABELS | WORDS | {"masked": 0.5, "prefix": 1.0}
EVERY_TASK = (
    LABELS
    | WORDS
    | {
        "caption": 1.5,
        "answers": 1.5,
        "boxes": 2.0,
        "pointed": 0.5,
        "entailment": 1.0,
        "nlvr": 1.0,
    }
)
LEGS = {
    "sprites": Leg(2e-3, 2e-3, LABELS, augmented=0.5, kept_patches=12, mixture=None, max_groups=1, max_count=1),
    "patches": Leg(1.5e-3, 1.5e-3, LABELS, mixture=None),
    "pretrain": Leg(6e-4, 4e-4, PRETRAINING, batch_size=96, mixture=PAIRS),
    "tasks": Leg(7e-4, 3e-4, EVERY_TASK, batch_size=80),
    # What it is served with: patches left out make objects look larger, and more of their kind.
    "whole": Leg(5e-4, 2.2e-4, EVERY_TASK, batch_size=56, augmented=0.5, kept_patches=None),
}
