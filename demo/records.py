"""The fixed splits of the emoji scenes as records of every task; and what only their captions can be scored by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    QuestionRecord,
    Record,
    VideoQuestionRecord,
)
from demo.scenes.grammar import NamedGroup, exact_match, object_recall, parse_caption
from demo.scenes.videos import encode_video
from demo.splits import SPLITS, SceneItem, pair_items, scene_items, split_of, video_items

#: Splits of the table, and their titles in it; the others can be asked for by name.
TITLES = {
    "test": "training styles",
    "test-twemoji": "Twemoji (held out)",
    "test-openmoji": "OpenMoji (held out)",
    "test-photographs": "photographs",
    "test-pairs": "held-out pairs",
}
THREE = 3  # the number that is counted worst


@dataclass(frozen=True)
class _Named:
    groups: Sequence[NamedGroup]


def caption_figures(text: str, record: CaptionRecord) -> dict[str, float]:
    """Return what a caption got right, as shares of 1.

    Object recall: of the scene's groups those whose class the text names. Exact: the true caption's words. Threes
    counted, of scenes with a group of three alone: of those groups the ones for which the text, at their place in it,
    says three, whatever it calls them.
    """
    truth = record.captions[0]
    groups, said = parse_caption(truth), parse_caption(text)
    figures = {"object recall": object_recall(text, _Named(groups)), "exact": float(exact_match(text, truth))}
    threes = [place for place, group in enumerate(groups) if group.count == THREE]
    if threes:
        right = [place < len(said) and said[place].count == THREE for place in threes]
        figures["threes counted"] = sum(right) / len(threes)
    return figures


# Most tasks of a split look at the same scenes; one split of 1,000 takes 50 MB.
@lru_cache(maxsize=len(SPLITS))
def _scenes(name: str, count: int) -> tuple[SceneItem, ...]:
    split = split_of(name)
    return tuple(scene_items(split, min(count, split.scenes)))


def captions(name: str, count: int) -> list[CaptionRecord]:
    """One per scene, for captioning and retrieval."""
    return [
        CaptionRecord(str(index), item.scene.image, (item.scene.caption,))
        for index, item in enumerate(_scenes(name, count))
    ]


def questions(name: str, count: int) -> list[QuestionRecord]:
    """The first question of each scene: kinds come in random order there."""
    return [
        QuestionRecord(str(index), item.scene.image, question.text, (question.answer,), question.kind)
        for index, item in enumerate(_scenes(name, count))
        for question in item.questions[:1]
    ]


def expressions(name: str, count: int) -> list[ExpressionRecord]:
    """The first expression of each scene that has one."""
    return [
        ExpressionRecord(str(index), item.scene.image, expression.text, expression.box)
        for index, item in enumerate(_scenes(name, count))
        for expression in item.expressions[:1]
    ]


def statements(name: str, count: int) -> list[PairRecord]:
    """All statements on each pair of scenes: a true and a false one."""
    split = split_of(name)
    return [
        PairRecord(f"{index}-{number}", (item.first.image, item.second.image), statement.text, statement.label)
        for index, item in enumerate(pair_items(split, min(-(-count // 2), split.scene_pairs)))
        for number, statement in enumerate(item.statements)
    ][:count]


def hypotheses(name: str, count: int) -> list[HypothesisRecord]:
    """The first hypothesis of each scene: labels come in random order there."""
    return [
        HypothesisRecord(str(index), item.scene.image, hypothesis.text, hypothesis.label)
        for index, item in enumerate(_scenes(name, count))
        for hypothesis in item.hypotheses[:1]
    ]


def video_questions(name: str, count: int) -> list[VideoQuestionRecord]:
    """Questions on encoded videos that any single frame answers, for models that never saw a video."""
    split, records = split_of(name), []
    for index, item in enumerate(video_items(split, min(count, split.videos))):
        if item.zero_shot:
            film = encode_video(item.video.frames)
            records += [
                VideoQuestionRecord(f"{index}-{number}", film, question.text, (question.answer,), question.kind)
                for number, question in enumerate(item.zero_shot)
            ]
    return records[:count]


#: Task → the records of (split, how many), in the order of the table.
RECORDS: dict[str, Callable[[str, int], Sequence[Record]]] = {
    "caption": captions,
    "vqa": questions,
    "retrieval": captions,
    "grounding": expressions,
    "nlvr": statements,
    "entail": hypotheses,
    "video": video_questions,
}
