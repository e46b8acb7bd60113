"""The sources of data that `--data` names: each offers records to evaluate on and streams to train on.

    source = open_source("coco", SourceOptions(annotations=Path("dataset_coco.json"), images=Path("coco")))
    source.records("caption", "test")
    source.stream("caption", "train", batch_size=32).batch(0)

A source is imported when it is opened, so that nobody needs the packages of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from builders.data.readers.records import CaptionRecord, DatasetError, Record
from builders.data.streams import RecordStream, ShuffledRecords


@dataclass(frozen=True)
class SourceOptions:
    """What a command line says about its data.

    `annotations`, `questions`, `images`: files and folder of a data set. `texts`: texts about each scene, where a
    source draws scenes and a task has several.
    """

    annotations: Path | None = None
    images: Path | None = None
    questions: Path | None = None
    texts: int = 2


class Source:
    """A data set in files. Subclasses are named `Source`, one a module, and say how their files are read."""

    default_items: int | None = None  #: evaluated per task and split; None: all
    shares_texts = False  #: whether a text that several pictures have is right for each of them in retrieval
    caption_figures: Callable[[str, CaptionRecord], dict[str, float]] | None = None  #: of one caption, beside CIDEr

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        self._known: dict[str | None, Sequence[Record]] = {}

    @staticmethod
    def read(annotations: Path, images: Path, split: str | None = None, **more: Path) -> Sequence[Record]:
        """Read the records of a split. Raises DatasetError naming the file and the entry."""
        return []

    def splits(self, wanted: str | None) -> Mapping[str | None, str]:
        """Return the splits to evaluate on, with their titles; `wanted` is the one that was named."""
        stem = self.options.annotations.stem if self.options.annotations else ""
        return {wanted: f"{self.name} {wanted or stem}"}

    def records(self, task: str, split: str | None, limit: int | None = None) -> Sequence[Record]:
        """Return the records of a task, at most `limit`. Raises DatasetError for files that are missing or wrong."""
        if split not in self._known:
            self._known[split] = self._read_files(split)
        return self._known[split][:limit]

    def _read_files(self, split: str | None) -> Sequence[Record]:
        options = self.options
        if options.annotations is None or options.images is None:
            raise DatasetError(f"--data {self.name} needs --annotations and --images")
        if options.questions is not None and self.name != "vqa":
            raise DatasetError("--questions goes with --data vqa alone")
        more = {"questions": options.questions} if options.questions is not None else {}
        return self.read(options.annotations, options.images, split, **more)

    def stream(
        self, task: str, split: str | None, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> RecordStream:
        """Return the endless batches of process `rank` of `world` to train on."""
        return ShuffledRecords(self.records(task, split), batch_size, seed=seed, rank=rank, world=world)

    def validation_stream(self, task: str, split: str | None, batch_size: int) -> RecordStream | None:
        """Return batches to validate on, or None where no split is named."""
        if split is None:
            return None
        records = self.records(task, split)
        return ShuffledRecords(records, min(batch_size, len(records)))

    def captions(self, split: str | None, seed: int) -> list[Sequence[str]]:
        """Return the captions of every training picture, which CIDEr counts words in."""
        return [record.captions for record in self.records("caption", split) if isinstance(record, CaptionRecord)]

    def answers(self) -> list[str]:
        """Return all answers there are. Raises DatasetError where they are not a closed list."""
        raise DatasetError(f"--rank needs a data set with a closed list of answers, such as easy-vqa, not {self.name}")

    def write_vocabulary(self, path: Path) -> None:
        """Write the vocabulary of a new network. Raises DatasetError for a data set that brings none."""
        raise DatasetError("--vocabulary is needed: the vocab.txt of bert-base-uncased, or of your own")


class Entry(NamedTuple):
    """A row of the registry."""

    module: str  #: holds the class `Source`
    tasks: tuple[str, ...]  #: in the order of an evaluation's table
    videos: bool = False  #: whether it holds videos, which are evaluated on and not trained on


SOURCES = {
    "emoji": Entry("demo.source", ("caption", "vqa", "retrieval", "grounding", "nlvr", "entail", "video")),
    "easy-vqa": Entry("builders.data.readers.easy_vqa", ("vqa",)),
    "coco": Entry("builders.data.readers.coco", ("caption", "retrieval")),
    "webdataset": Entry("builders.data.readers.webdataset", ("caption", "retrieval")),
    "flickr30k": Entry("builders.data.readers.flickr30k", ("retrieval", "caption")),
    "vqa": Entry("builders.data.readers.vqa", ("vqa",)),
    "refcoco": Entry("builders.data.readers.refcoco", ("grounding",)),
    "nlvr2": Entry("builders.data.readers.nlvr2", ("nlvr",)),
    "snli-ve": Entry("builders.data.readers.snli_ve", ("entail",)),
    "msrvtt": Entry("builders.data.readers.msrvtt", ("retrieval",), videos=True),
    "video-qa": Entry("builders.data.readers.video_qa", ("video",), videos=True),
    "vatex": Entry("builders.data.readers.vatex", ("caption",), videos=True),
}
#: Tasks of training that use the records of another task.
TRAINED_ON = {"pretrain": "caption"}


def tasks_of(name: str) -> tuple[str, ...]:
    """Return the tasks of a source. Raises DatasetError for an unknown name."""
    if name not in SOURCES:
        raise DatasetError(f"--data {name}: unknown; choose one of {', '.join(SOURCES)}")
    return SOURCES[name].tasks


def open_source(name: str, options: SourceOptions, task: str | None = None) -> Source:
    """Open a source by name; `task`: to be trained on it. Raises DatasetError for an unknown or an unsuited name."""
    tasks, wanted = tasks_of(name), TRAINED_ON.get(task, task)
    if wanted is not None and (wanted not in tasks or SOURCES[name].videos):
        suited = ", ".join(other for other, entry in SOURCES.items() if wanted in entry.tasks and not entry.videos)
        raise DatasetError(f"--data {name} has nothing for {task}; {suited} have")
    try:
        module = import_module(SOURCES[name].module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "demo":  # a wheel does not carry it: 10 MB of drawings
            raise DatasetError(
                f"--data {name} is drawn by the folder demo/, which is in the repository alone"
            ) from None
        raise
    return module.Source(name, options)
