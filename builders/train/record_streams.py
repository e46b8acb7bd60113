"""Endless streams of records that can be entered anywhere: batch number `index` is always the same records.

So a run that is resumed needs to know nothing but the number of the next batch. With several processes each has a
stream of its own: `rank` of `world`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

from torch.utils.data import Dataset

from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    QuestionRecord,
    Record,
)
from builders.train.batches import BATCHES, Batch, TensorMaker
from demo.scenes.generator import Scene, SceneGenerator
from demo.texts.expressions import expressions_of
from demo.texts.questions import questions_of
from demo.texts.statements import hypotheses_of, pair_statements

#: Seeds of scenes that are trained on and looked at are above all that evaluation and tests use.
FIRST_SEED = 1 << 40
SCENE_SIZE = 128  # pixels
BLOCK = 32  # batches of scenes that one generator draws; a stream is entered at the start of a block


def seed_of(*parts: object) -> int:
    """A seed below 2³² that depends on every part."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


class RecordStream(Protocol):
    """Where batches of records come from."""

    seed: int

    def batch(self, index: int) -> Sequence[Record]:
        """The records of batch `index`, from 0; the same at every call."""


class ShuffledRecords:
    """The records of a data set, in another random order in every epoch; what does not fill a batch is left out."""

    def __init__(
        self, records: Sequence[Record], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        """Raises ValueError for fewer records than a batch of all processes takes."""
        self.records, self.batch_size, self.seed, self.rank, self.world = records, batch_size, seed, rank, world
        self.batches = len(records) // (batch_size * world)  # per epoch
        if self.batches == 0:
            raise ValueError(f"{len(records)} records are fewer than a batch of {batch_size * world}")
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, index: int) -> list[Record]:
        """See `RecordStream`."""
        epoch, place = divmod(index, self.batches)
        if self._order[0] != epoch:
            order = list(range(len(self.records)))
            Random(seed_of("order", self.seed, epoch)).shuffle(order)
            self._order = (epoch, order)
        first = (place * self.world + self.rank) * self.batch_size
        return [self.records[number] for number in self._order[1][first : first + self.batch_size]]


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


class TaskBatches(Dataset):
    """Batch `index` of a stream as tensors, for a DataLoader that goes on counting."""

    def __init__(self, task: str, stream: RecordStream, maker: TensorMaker) -> None:
        self.task, self.stream, self.maker = task, stream, maker

    def __getitem__(self, index: int) -> Batch:
        random = Random(seed_of("crops", self.stream.seed, index))
        return BATCHES[self.task](self.stream.batch(index), self.maker, random)


def first_batches(task: str, stream: RecordStream, maker: TensorMaker, count: int) -> list[Batch]:
    """The first batches of a stream, for looks during training that always see the same."""
    batches = TaskBatches(task, stream, maker)
    return [batches[index] for index in range(count)]
