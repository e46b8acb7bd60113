"""Emoji scenes as records of every task, each exactly true; and what only their captions can be scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from builders.data.emoji_scenes import Scene, SceneGenerator
from builders.data.emoji_sprites import HELD_OUT_STYLE, TRAIN_STYLES
from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    QuestionRecord,
)
from builders.data.scene_expressions import expressions_of
from builders.data.scene_grammar import NamedGroup, exact_match, object_recall, parse_caption
from builders.data.scene_questions import questions_of
from builders.data.scene_statements import hypotheses_of, pair_statements

#: Seed of the scenes that no training draws.
TEST_SEED = 90_000
SPLITS = {"training styles": TRAIN_STYLES, "Twemoji (held out)": (HELD_OUT_STYLE,)}


@cache
def scenes_of(split: str, count: int) -> tuple[Scene, ...]:
    """The first scenes of a split; drawn once, since all tasks look at the same."""
    return tuple(SceneGenerator(SPLITS[split], seed=TEST_SEED).batch(count).scenes)


@dataclass(frozen=True)
class _Named:
    groups: Sequence[NamedGroup]


def caption_figures(text: str, record: CaptionRecord) -> dict[str, float]:
    """Object recall: the share of the scene's groups whose class the text names. Exact: the true caption's words."""
    truth = record.captions[0]
    return {
        "object recall": object_recall(text, _Named(parse_caption(truth))),
        "exact": float(exact_match(text, truth)),
    }


def caption_records(scenes: Sequence[Scene]) -> list[CaptionRecord]:
    """One per scene, for captioning and retrieval."""
    return [CaptionRecord(str(index), scene.image, (scene.caption,)) for index, scene in enumerate(scenes)]


def question_records(scenes: Sequence[Scene], seed: int) -> list[QuestionRecord]:
    """A question per scene; the kinds take turns as far as the scenes allow."""
    random = Random(seed)
    return [
        QuestionRecord(f"{index}", scene.image, question.text, (question.answer,), question.kind)
        for index, scene in enumerate(scenes) for question in questions_of(scene, random, 1)
    ]  # fmt: skip


def expression_records(scenes: Sequence[Scene], seed: int) -> list[ExpressionRecord]:
    """An expression per scene that has one."""
    random = Random(seed)
    return [
        ExpressionRecord(f"{index}", scene.image, expression.text, expression.box)
        for index, scene in enumerate(scenes) for expression in expressions_of(scene, random, 1)
    ]  # fmt: skip


def pair_records(pairs: Sequence[tuple[Scene, Scene]], seed: int) -> list[PairRecord]:
    """A statement per pair of scenes."""
    random = Random(seed)
    return [
        PairRecord(f"{index}", (first.image, second.image), statement.text, statement.label)
        for index, (first, second) in enumerate(pairs)
        for statement in pair_statements(first, second, random, 1)
    ]


def hypothesis_records(scenes: Sequence[Scene], seed: int) -> list[HypothesisRecord]:
    """A hypothesis per scene."""
    random = Random(seed)
    return [
        HypothesisRecord(f"{index}", scene.image, hypothesis.text, hypothesis.label)
        for index, scene in enumerate(scenes) for hypothesis in hypotheses_of(scene, random, 1)
    ]  # fmt: skip


#: Task → the records of (split, count).
RECORDS = {
    "caption": lambda split, count: caption_records(scenes_of(split, count)),
    "vqa": lambda split, count: question_records(scenes_of(split, count), TEST_SEED),
    "grounding": lambda split, count: expression_records(scenes_of(split, count), TEST_SEED),
    "retrieval": lambda split, count: caption_records(scenes_of(split, count)),
    "entail": lambda split, count: hypothesis_records(scenes_of(split, count), TEST_SEED),
}
