"""MSRVTT-QA and MSVD-QA: `test.jsonl`, lines of `video_id`, `question` and `answer`.

The layout of mPLUG's script (ALPRO's); videos are `{video_id}.mp4`. Answers are ranked among those of the training
split: `train_ans2label.json` beside it, a mapping whose keys are the answers.
"""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Videos, lines_of, load_json
from builders.data.readers.records import DatasetError, VideoQuestionRecord

FRAMES = 16  #: `num_frm` of the authors' videoqa_dataset.py
ANSWERS = "train_ans2label.json"


def read(annotations: Path, images: Path, split: str | None = None) -> list[VideoQuestionRecord]:
    """Read questions in the file's order; `images` holds the videos. Raises DatasetError."""
    folder = Videos(images)
    records = [
        VideoQuestionRecord(
            str(index),
            folder.named(entry, "video_id"),
            entry.text("question"),
            (entry.text("answer"),),
            frames=FRAMES,
        )
        for index, entry in enumerate(lines_of(annotations))
    ]
    if not records:
        raise DatasetError(f"{annotations}: holds no questions")
    return records


def answers(path: Path) -> list[str]:
    """Read the closed list of answers, in the file's order. Raises DatasetError."""
    content = load_json(path)
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: is not a mapping of answers to labels")
    return list(content)


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)

    def answers(self) -> list[str]:
        """See `sources.Source`."""
        if self.options.annotations is None:
            raise DatasetError(f"--data {self.name} needs --annotations and --images")
        return answers(self.options.annotations.parent / ANSWERS)
