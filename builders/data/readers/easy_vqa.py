"""easy-vqa 1.0 (MIT, https://github.com/vzhou842/easy-VQA), which ships its data in its PyPI package.

5,000 pictures of 64×64 with one coloured shape, 48,248 questions, 13 answers. Always "yes": 37.3 % of the test
questions; the best answer per question, without the picture: 67.0 %.

The package has `train` and `test`. `fit` and `validation` are parts of `train`, divided by picture: a picture whose
number's CRC-32 is a multiple of ten is in `validation` with all its questions. What is chosen (when to stop, which
rates) is chosen there, so that `test` is looked at once.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

from builders.data import sources
from builders.data.readers.annotations import Entry, Images, load_json
from builders.data.readers.records import DatasetError, QuestionRecord

SPLITS = ("train", "fit", "validation", "test")
PARTS_OF_TRAIN = ("fit", "validation")
VALIDATION_SHARE = 10  # one picture in so many
YES_NO = ("yes", "no")
SHAPES = ("circle", "rectangle", "triangle")


def folder_of_package() -> Path:
    """Where the installed package keeps its data. Raises DatasetError when it is not installed."""
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DatasetError("easy-vqa is not installed: pip install easy-vqa==1.0")
    return Path(spec.origin).parent / "data"


def read(split: str, folder: Path | None = None) -> list[QuestionRecord]:
    """Return the questions of a split, in the package's order; `kind` is yes/no, shape or colour.

    Raises DatasetError for an unknown split and for files that are missing or wrong. `folder` holds `train/` and
    `test/` as the package has them; None: the installed package's.
    """
    if split not in SPLITS:
        raise DatasetError(f"easy-vqa has no split {split!r}; it has {', '.join(SPLITS)}")
    part, split = split, "train" if split in PARTS_OF_TRAIN else split
    folder = folder or folder_of_package()
    path = folder / split / "questions.json"
    images = Images(folder / split / "images")
    rows = load_json(path)
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: is not a list of questions")
    records, found = [], {}
    for index, row in enumerate(rows):
        entry = Entry({}, f"{path}, entry {index}")
        if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[1], str):
            raise DatasetError(f"{entry.place}: is not [question, answer, number of the image]")
        question, answer, image = row
        if part in PARTS_OF_TRAIN and part != _part_of(image):
            continue
        if image not in found:
            found[image] = images.find(entry, f"{image}.png")
        records.append(QuestionRecord(f"{split}-{index}", found[image], question, (answer,), _kind(answer)))
    return records


def answers(folder: Path | None = None) -> list[str]:
    """The 13 answers, in the package's order."""
    path = (folder or folder_of_package()) / "answers.txt"
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None


def _part_of(image: object) -> str:
    return "fit" if crc32(str(image).encode()) % VALIDATION_SHARE else "validation"


def _kind(answer: str) -> str:
    if answer in YES_NO:
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"


class Source(sources.Source):
    """See the module; `--annotations` names a folder other than the installed package's."""

    def splits(self, wanted: str | None) -> dict[str | None, str]:
        """See `sources.Source`."""
        return {wanted or "test": f"easy-vqa {wanted or 'test'}"}

    def records(self, task: str, split: str | None, limit: int | None = None) -> list[QuestionRecord]:
        """See `sources.Source`."""
        return read(split or "train", self.options.annotations)[:limit]

    def answers(self) -> list[str]:
        """See `sources.Source`."""
        return answers(self.options.annotations)
