"""One evaluation per task: records are asked of a model, its answers are scored.

Each takes whoever answers (`models.Model`), so that a checkpoint in PyTorch and a server go the same road.
"""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    Picture,
    QuestionRecord,
    VideoCaptionRecord,
    VideoQuestionRecord,
    encoded,
)
from builders.evaluation import caption_metrics, vqa_accuracy
from builders.evaluation.boxes import ENOUGH, iou
from builders.evaluation.models import Model
from builders.evaluation.retrieval_ranks import RECALLS, ranks, recalls, shortlist
from clients.client import calls
from clients.client.calls import Call
from mplug.inputs.text import clean_caption

T = TypeVar("T")
R = TypeVar("R")

#: Requests under way at once: as many as the decoder has slots, and a few that are encoded meanwhile.
CONCURRENCY = 40
RERANKED = 16  #: of a shortlist; what is behind counts only for recall beyond it
TEXTS_PER_MATCH = 256  # that one request of the model `match` takes
BLIND = "not computed: a blind test, whose answers only the official server has (--save-predictions)"


@dataclass(frozen=True)
class Mistake:
    """One wrong answer, for reading."""

    key: str
    asked: str
    truth: str
    answer: str


@dataclass(frozen=True)
class Outcome:
    """A task's score on one split.

    `metrics`: shares of 1 by name, in the order of the table, or why there is none. `mistakes`: all of them, in the
    order of the data. `predictions`: every answer, captions and answers in the layouts that official scorers read.
    """

    task: str
    split: str
    items: int
    metrics: dict[str, float | str]
    mistakes: list[Mistake] = field(repr=False)
    predictions: list[dict[str, object]] = field(repr=False)


#: Further figures of one caption, by name, as shares of 1.
CaptionFigures = Callable[[str, CaptionRecord], dict[str, float]]


async def captions(
    model: Model,
    records: Sequence[CaptionRecord] | Sequence[VideoCaptionRecord],
    split: str,
    *,
    figures: CaptionFigures | None = None,
) -> Outcome:
    """CIDEr, BLEU, METEOR, ROUGE-L, SPICE, and before them the mean of `figures`."""
    found = await _ask(model, records, lambda record: calls.caption(**_visual(record)), f"caption, {split}")
    texts = [each[0].text for each in found]
    own: dict[str, list[float]] = defaultdict(list)
    mistakes = []
    for record, text in zip(records, texts, strict=True):
        for name, value in (figures(text, record) if figures else {}).items():
            own[name].append(value)
        if clean_caption(text) not in map(clean_caption, record.captions):
            mistakes.append(Mistake(record.key, "", record.captions[0], text))
    keys = [record.key for record in records]
    references = {record.key: record.captions for record in records}
    scored = await asyncio.to_thread(caption_metrics.score, references, dict(zip(keys, texts, strict=True)))
    metrics = {name: float(np.mean(values)) for name, values in own.items()} | scored.values
    predictions = [{"image_id": _number(key), "caption": text} for key, text in zip(keys, texts, strict=True)]
    return Outcome("caption", split, len(records), metrics, mistakes, predictions)


async def questions(
    model: Model, records: Sequence[QuestionRecord], split: str, *, candidates: Sequence[str] | None = None
) -> Outcome:
    """VQA accuracy, overall and of each kind; `candidates` are ranked instead of an answer being written."""
    found = await _ask(
        model, records, lambda record: calls.vqa(_sent(record.image), record.question, candidates), f"vqa, {split}"
    )
    return _answered("vqa", split, records, [each[0].text for each in found])


async def video_questions(
    model: Model, records: Sequence[VideoQuestionRecord], split: str, *, candidates: Sequence[str] | None = None
) -> Outcome:
    """The same about encoded videos."""

    def ask(record: VideoQuestionRecord) -> Call[list[calls.Answer]]:
        return calls.vqa(question=record.question, candidates=candidates, video=record.video, frames=record.frames)

    found = await _ask(model, records, ask, f"video, {split}")
    return _answered("video", split, records, [each[0].text for each in found])


def _answered(
    task: str, split: str, records: Sequence[QuestionRecord | VideoQuestionRecord], texts: list[str]
) -> Outcome:
    predictions = [
        {"question_id": _number(record.key), "answer": text} for record, text in zip(records, texts, strict=True)
    ]
    if not all(record.answers for record in records):
        return Outcome(task, split, len(records), {"accuracy": BLIND}, [], predictions)
    scored = vqa_accuracy.score(
        (text, record.answers, record.kind) for record, text in zip(records, texts, strict=True)
    )
    metrics = {"accuracy": scored.overall} | {
        f"accuracy, {kind}": value for kind, value in sorted(scored.by_kind.items()) if len(scored.by_kind) > 1
    }
    mistakes = [
        Mistake(record.key, record.question, record.answers[0], text)
        for record, text in zip(records, texts, strict=True)
        if not any(vqa_accuracy.matches(text, each) for each in record.answers)
    ]
    return Outcome(task, split, len(records), metrics, mistakes, predictions)


async def expressions(model: Model, records: Sequence[ExpressionRecord], split: str) -> Outcome:
    """Share of the boxes that overlap the true one by half, and the mean overlap."""
    found = await _ask(
        model, records, lambda record: calls.ground(_sent(record.image), record.expression), f"grounding, {split}"
    )
    overlaps = iou([each.box for each in found], [record.box for record in records])
    mistakes = [
        Mistake(record.key, record.expression, _shown(record.box), f"{_shown(each.box)} (IoU {overlap:.2f})")
        for record, each, overlap in zip(records, found, overlaps, strict=True)
        if overlap < ENOUGH
    ]
    metrics = {"IoU ≥ 0.5": float((overlaps >= ENOUGH).mean()), "mean IoU": float(np.mean(overlaps))}
    predictions = [{"key": record.key, "box": list(each.box)} for record, each in zip(records, found, strict=True)]
    return Outcome("grounding", split, len(records), metrics, mistakes, predictions)


async def pairs(model: Model, records: Sequence[PairRecord], split: str) -> Outcome:
    """Accuracy of true or false about two pictures, overall and of each class."""

    def ask(record: PairRecord) -> Call[calls.Verdict]:
        first, second = record.images
        return calls.nlvr((_sent(first), _sent(second)), record.statement)

    found = await _ask(model, records, ask, f"nlvr, {split}")
    texts = [record.statement for record in records]
    return _labelled("nlvr", split, records, texts, [each.label for each in found])


async def hypotheses(model: Model, records: Sequence[HypothesisRecord], split: str) -> Outcome:
    """Accuracy of entailment, neutral or contradiction, overall and of each class."""
    found = await _ask(
        model, records, lambda record: calls.entail(_sent(record.image), record.hypothesis), f"entail, {split}"
    )
    texts = [record.hypothesis for record in records]
    return _labelled("entail", split, records, texts, [each.label for each in found])


def _labelled(
    task: str, split: str, records: Sequence[PairRecord | HypothesisRecord], texts: list[str], labels: list[str]
) -> Outcome:
    right: dict[str, list[bool]] = defaultdict(list)
    mistakes = []
    for record, text, label in zip(records, texts, labels, strict=True):
        right[record.label].append(label == record.label)
        if label != record.label:
            mistakes.append(Mistake(record.key, text, record.label, label))
    everything = [each for values in right.values() for each in values]
    metrics = {"accuracy": float(np.mean(everything))} | {
        f"accuracy, {label}": float(np.mean(values)) for label, values in sorted(right.items())
    }
    predictions = [{"key": record.key, "label": label} for record, label in zip(records, labels, strict=True)]
    return Outcome(task, split, len(records), metrics, mistakes, predictions)


async def retrieval(
    model: Model,
    records: Sequence[CaptionRecord] | Sequence[VideoCaptionRecord],
    split: str,
    *,
    reranked: int = RERANKED,
    merge_texts: bool = False,
) -> Outcome:
    """Recall at 1, 5 and 10 both ways, after re-ranking and by similarity alone.

    `merge_texts`: a text that several pictures have is one text, and right for each of them; without, each
    counts for its own picture, as the published scripts do it.
    """
    texts, images_of = _texts_of(records, merge_texts)
    texts_of: list[set[int]] = [set() for _ in records]
    for text, images in enumerate(images_of):
        for image in images:
            texts_of[image].add(text)
    pictures = await _ask(
        model, records, lambda record: calls.embed_image(**_visual(record)), f"retrieval, {split}: pictures"
    )
    sentences = await _ask(model, texts, calls.embed_text, f"retrieval, {split}: texts")
    similarities = np.stack(pictures) @ np.stack(sentences).T  # [images, texts]
    scores = await _matched(model, records, texts, similarities, reranked, f"retrieval, {split}: matching")
    metrics: dict[str, float | str] = {}
    ways = {
        "image → text": (similarities, scores, texts_of),
        "text → image": (similarities.T, scores.T, images_of),
    }
    final: dict[str, np.ndarray] = {}
    for way, (similar, scored, right) in ways.items():
        lists = np.full_like(scored, np.nan)
        short = shortlist(similar, reranked)
        np.put_along_axis(lists, short, np.take_along_axis(scored, short, 1), 1)
        final[way] = ranks(similar, lists, right)
        metrics |= {f"{way}, R@{most}": value for most, value in recalls(final[way]).items()}
    for way, (similar, _, right) in ways.items():
        alone = recalls(ranks(similar, np.full_like(similar, np.nan), right))
        metrics |= {f"{way}, R@{most} by similarity alone": alone[most] for most in RECALLS}
    mistakes = [
        Mistake(records[min(images_of[text])].key, "text → image", texts[text], f"right picture at rank {rank + 1}")
        for text, rank in enumerate(final["text → image"])
        if rank
    ]
    predictions = [
        {"key": record.key, "rank": int(rank)} for record, rank in zip(records, final["image → text"], strict=True)
    ]
    return Outcome("retrieval", split, len(records), metrics, mistakes, predictions)


def _texts_of(
    records: Sequence[CaptionRecord] | Sequence[VideoCaptionRecord], merge: bool
) -> tuple[list[str], list[set[int]]]:
    """All texts, and which pictures each belongs to."""
    texts: list[str] = []
    images_of: list[set[int]] = []
    seen: dict[str, int] = {}
    for image, record in enumerate(records):
        for text in record.captions:
            if merge and text in seen:
                images_of[seen[text]].add(image)
                continue
            seen[text] = len(texts)
            texts.append(text)
            images_of.append({image})
    return texts, images_of


async def _matched(
    model: Model,
    records: Sequence[CaptionRecord] | Sequence[VideoCaptionRecord],
    texts: Sequence[str],
    similarities: np.ndarray,
    length: int,
    title: str,
) -> np.ndarray:
    """Matching scores `[images, texts]` of all pairs that are on a shortlist of either way; NaN elsewhere.

    Picture by picture, so that each is sent and encoded once or twice, whatever lists it is on.
    """
    wanted = np.zeros(similarities.shape, bool)
    np.put_along_axis(wanted, shortlist(similarities, length), True, 1)
    np.put_along_axis(wanted.T, shortlist(similarities.T, length), True, 1)
    pieces = [
        (image, some[start : start + TEXTS_PER_MATCH])
        for image, some in enumerate(np.flatnonzero(row) for row in wanted)
        for start in range(0, len(some), TEXTS_PER_MATCH)
    ]

    def ask(piece: tuple[int, np.ndarray]) -> Call[list[calls.Match]]:
        image, some = piece
        return calls.match(texts=[texts[text] for text in some], **_visual(records[image]))

    scores = np.full(similarities.shape, np.nan)
    for (image, some), found in zip(pieces, await _ask(model, pieces, ask, title), strict=True):
        scores[image, some] = [each.score for each in found]
    return scores


async def _ask(model: Model, items: Sequence[R], ask: Callable[[R], Call[T]], title: str) -> list[T]:
    """The answers to all items, in order, `CONCURRENCY` at a time. Raises ClientError for the first that fails."""
    gate = asyncio.Semaphore(CONCURRENCY)
    with tqdm(total=len(items), desc=title, unit="", disable=None) as progress:

        async def one(item: R) -> T:
            async with gate:
                answer = await model.infer(ask(item))
            progress.update()
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in items]
        except BaseExceptionGroup as failed:  # the first of them; the others ended with it
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]


def _visual(record: CaptionRecord | VideoCaptionRecord) -> dict[str, Any]:
    """The arguments of a call that show what a record is of."""
    if isinstance(record, VideoCaptionRecord):
        return {"video": record.video, "frames": record.frames}
    return {"image": _sent(record.image)}


def _sent(picture: Picture) -> bytes:
    """What is sent of a picture: the file as it is, or pixels as PNG."""
    if not isinstance(picture, np.ndarray):
        return encoded(picture)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _number(key: str) -> int | str:
    """Ids that are numbers stand as numbers in results files; "007" is none."""
    return int(key) if key.isdecimal() and str(int(key)) == key else key


def _shown(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{side:.0f}" for side in box) + ")"
