"""VQA v2, in the layout of ALBEF's and mPLUG's scripts and in the official one.

- `vqa_{train,val,test}.json` and the like: a list of `question_id`, `image`, `question`, `answer` (ten of them, or
  one text for Visual Genome; none in a blind test) and `dataset` (`vqa`, `vg`, `gqa`).
- Official: `v2_OpenEnded_mscoco_*_questions.json` and, beside it, `v2_mscoco_*_annotations.json`.
"""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Entry, Images, list_of_entries, load_json
from builders.data.readers.records import DatasetError, QuestionRecord

#: Weight of a question in training by its data set, as published.
WEIGHTS = {"vqa": 1.0, "vg": 0.5, "gqa": 0.5}


def read(
    annotations: Path,
    images: Path,
    split: str | None = None,
    *,
    questions: Path | None = None,
    other_images: dict[str, Path] | None = None,
) -> list[QuestionRecord]:
    """Questions in the file's order; `kind` is the official answer type (yes/no, number, other) where it is known.

    `questions`: the official file of questions; `annotations` may then be the same file, for a split without
    answers. `images` holds `train2014/` and so on; `other_images` the folders of pictures of `vg` and `gqa`.
    Raises DatasetError naming the file, entry, key or picture.
    """
    if questions is not None:
        return _official(questions, annotations, Images(images))
    content = load_json(annotations)
    if isinstance(content, dict):
        missing = "questions" if "annotations" in content else "annotations"
        raise DatasetError(f"{annotations}: is one of two official files; give that of the {missing}, too")
    folders = {"vqa": Images(images), **{name: Images(path) for name, path in (other_images or {}).items()}}
    return [_record(entry, folders) for entry in list_of_entries(content, str(annotations))]


def read_references(annotations: Path) -> list[QuestionRecord]:
    """Answers alone, to score predictions against: of a file in either layout, without pictures.

    An official file of annotations has not the questions' texts; they are blank then. Raises DatasetError.
    """
    content = load_json(annotations)
    if not isinstance(content, dict):
        folders = dict.fromkeys(WEIGHTS, Images(None))
        return [_record(entry, folders) for entry in list_of_entries(content, str(annotations))]
    return [
        QuestionRecord(
            key=str(entry["question_id"]),
            image=Path(),
            question="",
            answers=tuple(each.text("answer") for each in entry.entries("answers")),
            kind=entry.text("answer_type") if "answer_type" in entry else "",
        )
        for entry in Entry(content, str(annotations)).entries("annotations")
    ]


def _record(entry: Entry, folders: dict[str, Images]) -> QuestionRecord:
    source = entry.text("dataset") if "dataset" in entry else "vqa"
    if source not in WEIGHTS:
        raise entry.wrong("dataset", f"one of {', '.join(WEIGHTS)}")
    if source not in folders:
        raise DatasetError(f"{entry.place}: is of {source}, whose folder of images was not given")
    answers = entry.texts("answer") if "answer" in entry else ()
    return QuestionRecord(
        key=str(entry["question_id"]),
        image=folders[source].find(entry, entry.text("image")),
        question=entry.text("question"),
        answers=answers,
        kind=entry.text("answer_type") if "answer_type" in entry else "",
        weight=WEIGHTS[source],
    )


def _official(questions: Path, annotations: Path, folder: Images) -> list[QuestionRecord]:
    document = Entry(load_json(questions), str(questions))
    subtype = document.text("data_subtype").replace("test-dev", "test")
    answered: dict[str, Entry] = {}
    if annotations != questions:
        found = Entry(load_json(annotations), str(annotations)).entries("annotations")
        answered = {str(entry["question_id"]): entry for entry in found}
    records = []
    for entry in document.entries("questions"):
        key = str(entry["question_id"])
        if answered and key not in answered:
            raise DatasetError(f"{entry.place}: question {key} has no answers in {annotations}")
        answers = answered.get(key)
        try:
            number = int(entry["image_id"])
        except (TypeError, ValueError):
            raise entry.wrong("image_id", "a number") from None
        name = f"COCO_{subtype}_{number:012d}.jpg"
        records.append(
            QuestionRecord(
                key=key,
                image=folder.find(entry, f"{subtype}/{name}", name),
                question=entry.text("question"),
                answers=tuple(each.text("answer") for each in answers.entries("answers")) if answers else (),
                kind=answers.text("answer_type") if answers and "answer_type" in answers else "",
            )
        )
    return records


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
