"""Endless batches of fresh emoji scenes as records of every task; batch `index` is always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    QuestionRecord,
    Record,
)
from builders.data.streams import seed_of
from demo.scenes.generator import Scene, SceneGenerator
from demo.texts.expressions import expressions_of
from demo.texts.questions import questions_of
from demo.texts.statements import hypotheses_of, pair_statements

#: Training and validation draw from seeds above all that test splits and tests use.
FIRST_SEED = 1 << 40
SCENE_SIZE = 128  # pixels
BLOCK = 32  # batches that one generator draws; a stream is entered at the start of a block


def _captions(scenes: Sequence[Scene], random: Random, each: int) -> list[Record]:
    # The key is the caption, so that scenes of which the same is said are right for each other.
    return [CaptionRecord(scene.caption, scene.image, (scene.caption,)) for scene in scenes]


def _questions(scenes: Sequence[Scene], random: Random, each: int) -> list[Record]:
    return [
        QuestionRecord("", scene.image, question.text, (question.answer,), question.kind)
        for scene in scenes
        for question in questions_of(scene, random, each)
    ]


def _expressions(scenes: Sequence[Scene], random: Random, each: int) -> list[Record]:
    return [
        ExpressionRecord("", scene.image, expression.text, expression.box)
        for scene in scenes
        for expression in expressions_of(scene, random, each)
    ]


def _statements(scenes: Sequence[Scene], random: Random, each: int) -> list[Record]:
    return [
        PairRecord("", (left.image, right.image), statement.text, statement.label)
        for left, right in zip(scenes[::2], scenes[1::2], strict=False)
        for statement in pair_statements(left, right, random, each)
    ]


def _hypotheses(scenes: Sequence[Scene], random: Random, each: int) -> list[Record]:
    return [
        HypothesisRecord("", scene.image, hypothesis.text, hypothesis.label)
        for scene in scenes
        for hypothesis in hypotheses_of(scene, random, each)
    ]


#: Task → records over scenes, so many texts each.
SCENE_TEXTS: dict[str, Callable[[Sequence[Scene], Random, int], list[Record]]] = {
    "pretrain": _captions,
    "retrieval": _captions,
    "caption": _captions,
    "vqa": _questions,
    "grounding": _expressions,
    "nlvr": _statements,
    "entail": _hypotheses,
}


class SceneRecords:
    """Fresh emoji scenes, `batch_size` a batch, with `texts` texts each where the task has several."""

    files = 0

    def __init__(
        self,
        task: str,
        styles: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        texts: int = 2,
        max_groups: int = 2,
        augment: bool = True,
    ) -> None:
        self.task, self.styles, self.batch_size, self.seed = task, tuple(styles), batch_size, seed
        self.rank, self.texts, self.max_groups, self.augment = rank, texts, max_groups, augment
        self._generator: SceneGenerator | None = None
        self._block, self._drawn = -1, 0

    def scenes(self, index: int) -> list[Scene]:
        """The scenes of batch `index`."""
        block, place = divmod(index, BLOCK)
        if block != self._block or place < self._drawn or self._generator is None:
            self._generator = SceneGenerator(
                self.styles,
                size=SCENE_SIZE,
                max_groups=self.max_groups,
                augment=self.augment,
                seed=FIRST_SEED + seed_of("scenes", self.seed, self.rank, block),
            )
            self._block, self._drawn = block, 0
        paired = self.task == "nlvr"
        for _ in range(place - self._drawn):
            self._generator.batch(self.batch_size, paired=paired)
        self._drawn = place + 1
        return self._generator.batch(self.batch_size, paired=paired).scenes

    def batch(self, index: int) -> list[Record]:
        """See `RecordStream`. Scenes of which a task has nothing to say are drawn and not used."""
        random = Random(seed_of("texts", self.seed, self.rank, index))
        return SCENE_TEXTS[self.task](self.scenes(index), random, self.texts)
