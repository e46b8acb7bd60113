"""Whether a data set is there and right, before hours are spent on it: all that is wrong, at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from builders.data.readers import video_qa
from builders.data.readers.annotations import missing_files
from builders.data.readers.records import DatasetError, Record, check_keys, open_picture
from builders.data.sources import SourceOptions, open_source
from builders.reproductions import Reproduction, Split, Training
from mplug.errors import InvalidRequest
from mplug.inputs.video import decode_video

FRAMES_LOOKED_AT = 2  # of a video: its first and its middle


@dataclass(frozen=True)
class Checked:
    """A split that was read."""

    what: Split
    annotations: Path
    images: Path
    split: str
    records: Sequence[Record]
    answers: Sequence[str] = ()


@dataclass
class Ready:
    """What can be used: splits, the training split where it was asked for, and which sizes are not the published."""

    splits: list[Checked] = field(default_factory=list)
    training: Checked | None = None
    how: Training | None = None  #: of the data set to be fine-tuned on
    sizes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line: what will be used."""
        parts = [f"{each.what.title}: {len(each.records):,}" for each in self.splits]
        if self.training:
            parts.insert(0, f"training: {len(self.training.records):,}")
        return "checked: " + "; ".join(parts)


def check(row: Reproduction, data: Path, *, training: bool) -> tuple[Ready, list[str]]:
    """Read every split of a task below `data`; return what can be used, and what is wrong, a line each."""
    ready, problems = Ready(), []
    if not data.is_dir():
        return ready, [f"{data}: no such folder"]
    folders = [data / name for name in row.images if (data / name).is_dir()]
    splits = [split for split in row.splits if not split.optional or _found(data, split.annotations)]
    if row.any_of and any(_found(data, split.annotations) for split in splits):
        splits = [split for split in splits if _found(data, split.annotations)]
    wanted = [(split, False) for split in splits]
    if training and row.trainings:
        found = (how for how in row.trainings if _found(data, how.annotations))
        how = ready.how = next(found, row.trainings[0])
        # A checkpoint that was fine-tuned on one data set has published figures on that one alone.
        wanted = [(split, False) for split in splits if split.dataset == how.dataset]
        wanted.append((Split(f"{how.dataset}, training", how.annotations, how.items, {}, split=how.split), True))
    missing: dict[Path, None] = {}
    for split, is_training in wanted:
        try:
            checked = _read(row, split, data, folders, missing)
        except DatasetError as error:
            problems.append(str(error))
            continue
        if len(checked.records) != split.items:
            ready.sizes.append(
                f"{checked.annotations}: holds {len(checked.records):,} items; the published split "
                f"({split.title}) has {split.items:,}"
            )
        if is_training:
            ready.training = checked
        else:
            ready.splits.append(checked)
    problems += [f"{path}: no such file, and {data} must hold it" for path in missing]
    read = [*ready.splits, *([ready.training] if ready.training else [])]
    problems += _unreadable([checked.records for checked in read], set(missing))
    return ready, problems


def _found(data: Path, names: Sequence[str]) -> Path | None:
    return next((data / name for name in names if (data / name).is_file()), None)


def _read(row: Reproduction, split: Split, data: Path, folders: Sequence[Path], missing: dict[Path, None]) -> Checked:
    """Read a split, with the folder of pictures in which most of them are found. Raises DatasetError."""
    path = _found(data, split.annotations)
    if path is None:
        raise DatasetError(f"{split.title}: no {' or '.join(split.annotations)} in {data}")
    questions = None if split.questions is None else path.parent / split.questions
    absent = [name for name in split.beside if not (path.parent / name).is_file()]
    if absent:
        raise DatasetError(f"{split.title}: no {', '.join(absent)} beside {path}")
    tried = []
    for folder in folders:
        source = open_source(row.data, SourceOptions(annotations=path, images=folder, questions=questions))
        with missing_files() as gathered:
            records = source.records(row.task, split.split)
        tried.append((len(gathered), folder, gathered, records))
        if not gathered:
            break
    _, images, gathered, records = min(tried, key=lambda each: each[0])
    missing.update(gathered)
    check_keys(records, path)
    answers = video_qa.answers(path.parent / video_qa.ANSWERS) if row.ranked else ()
    return Checked(split, path, images, split.split or "train", records, answers)


def _unreadable(groups: Sequence[Sequence[Record]], missing: set[Path]) -> Iterator[str]:
    """Decode every picture and every video once; say what cannot be read."""
    files = dict.fromkeys(path for records in groups for record in records for path in _files(record))
    wanted = [path for path in files if path not in missing]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_problem, wanted)
        yield from filter(None, tqdm(found, total=len(wanted), desc="looking at files", unit="", disable=None))


def _files(record: Any) -> Iterator[Path]:
    pictures = getattr(record, "images", None) or (getattr(record, "image", None), getattr(record, "video", None))
    return (path for path in pictures if isinstance(path, Path))


def _problem(path: Path) -> str | None:
    try:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            decode_video(path.read_bytes(), FRAMES_LOOKED_AT, name=str(path))
        else:
            open_picture(path)
    except (DatasetError, InvalidRequest) as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None


VIDEO_SUFFIXES = {".mp4", ".avi", ".webm", ".mkv", ".mov"}
