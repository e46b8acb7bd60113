"""Scores of a file of predictions that somebody else's model, or ours, has written: no model is needed.

Layouts are those of the official servers: a list of `image_id` and `caption` (COCO), of `question_id` and `answer`
(VQA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from builders.data.readers import coco, flickr30k, vqa
from builders.data.readers.annotations import Entry, entries_of
from builders.data.readers.records import CaptionRecord, DatasetError, QuestionRecord, check_keys
from builders.evaluation import caption_metrics, vqa_accuracy
from builders.evaluation.tasks import Mistake, Outcome


def captions_of_file(path: Path, records: Sequence[CaptionRecord], split: str) -> Outcome:
    """Score captions against the references of just their pictures. Raises DatasetError."""
    found = _by_key(path, "image_id", lambda entry: entry["caption"])
    found = {str(key): _text(path, "caption", value) for key, value in found.items()}
    references = {record.key: record.captions for record in records}
    try:
        scored = caption_metrics.score(references, found)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    mistakes = [
        Mistake(record.key, "", record.captions[0], found[record.key])
        for record in records
        if found[record.key] not in record.captions
    ]
    return Outcome("caption", split, len(records), scored.values, mistakes, [])


def answers_of_file(path: Path, records: Sequence[QuestionRecord], split: str) -> Outcome:
    """Score answers against those that people gave to just these questions. Raises DatasetError."""
    found = _by_key(path, "question_id", lambda entry: entry["answer"])
    found = {key: _text(path, "answer", value) for key, value in found.items()}
    blind = next((record.key for record in records if not record.answers), None)
    if blind is not None:
        raise DatasetError(f"question {blind} has no answers to be scored against")
    scored = vqa_accuracy.score((found[record.key], record.answers, record.kind) for record in records)
    metrics = {"accuracy": scored.overall} | {
        f"accuracy, {kind}": value for kind, value in sorted(scored.by_kind.items())
    }
    mistakes = [
        Mistake(record.key, record.question, record.answers[0], found[record.key])
        for record in records
        if not any(vqa_accuracy.matches(found[record.key], each) for each in record.answers)
    ]
    return Outcome("vqa", split, len(records), metrics, mistakes, [])


#: Data set → how its references are read without pictures, the key of a prediction, and how all are scored.
SCORED: dict[str, tuple[Callable[..., list], str, Callable[..., Outcome]]] = {
    "coco": (lambda path, split: coco.read(path, None, split), "image_id", captions_of_file),
    "flickr30k": (lambda path, split: flickr30k.read(path, None, split), "image_id", captions_of_file),
    "vqa": (lambda path, split: vqa.read_references(path), "question_id", answers_of_file),
}


def score_file(data: str, predictions: Path, references: Path, split: str | None, *, subset: bool = False) -> Outcome:
    """Score a file of predictions against the annotations of a data set.

    `subset`: references without a prediction do not count, as where Karpathy's test pictures are scored against all
    of val2014. Raises DatasetError.
    """
    if data not in SCORED:
        raise DatasetError(f"predictions can be scored for {', '.join(SCORED)}, not for {data}")
    read, name, score = SCORED[data]
    records = read(references, split)
    check_keys(records, references)
    keys = {str(entry[name]) for entry in entries_of(predictions)}
    known = {record.key for record in records}
    unknown, missing = sorted(keys - known), sorted(known - keys)
    if unknown:
        raise DatasetError(f"{predictions}: {name} {unknown[0]} is not in {references} ({len(unknown):,} such)")
    if missing and not subset:
        raise DatasetError(
            f"{predictions}: nothing for {name} {missing[0]} ({len(missing):,} such of {len(known):,}); "
            "--subset scores those alone that are there"
        )
    records = [record for record in records if record.key in keys]
    return score(predictions, records, split or references.stem)


def _by_key(path: Path, name: str, value: Callable[[Entry], object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for entry in entries_of(path):
        key = str(entry[name])
        if key in found:
            raise DatasetError(f"{entry.place}: {name} {key} has been answered before")
        found[key] = value(entry)
    return found


def _text(path: Path, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"{path}: a {name} is {value!r}, not a text")
    return value
