"""What every data set is read into: one small record per example, the same for training and for evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mplug.errors import InvalidRequest
from mplug.inputs.images import decode_image


@dataclass(frozen=True)
class EncodedPicture:
    """A picture that lies inside another file: its bytes as encoded, and a name to report it by."""

    name: Path  #: the file it lies in, and its name there: `00003.tar/000030017.jpg`
    content: bytes

    def __hash__(self) -> int:
        return hash(self.name)


#: A picture: an encoded file, one inside another file, or pixels uint8 `[height, width, 3]`, RGB.
Picture = Path | EncodedPicture | np.ndarray

Box = tuple[float, float, float, float]  #: x0, y0, x1, y1 in pixels of the upright image


class DatasetError(ValueError):
    """A data set cannot be read; the message names the file, and the entry and key in it."""


@dataclass(frozen=True)
class CaptionRecord:
    """A picture and everything that was written of it; for captioning and for retrieval."""

    key: str  #: the data set's id of the picture
    image: Picture
    captions: tuple[str, ...]


@dataclass(frozen=True)
class QuestionRecord:
    """A question about a picture. `answers` are those of all who were asked, repeats kept; empty in a blind test."""

    key: str  #: the data set's id of the question
    image: Picture
    question: str
    answers: tuple[str, ...]
    kind: str = ""  #: of question or answer, as the data set has it
    weight: float = 1.0  #: of the question in training; 0.5 for Visual Genome, as published

    @property
    def weighted_answers(self) -> dict[str, float]:
        """Answer → its share of all answers, times `weight`: what fine-tuning for VQA weights its loss by."""
        return {answer: self.weight * n / len(self.answers) for answer, n in Counter(self.answers).items()}


@dataclass(frozen=True)
class VideoQuestionRecord:
    """A question about a video: an encoded file, or its bytes. `kind` and `answers` as for pictures."""

    key: str
    video: Path | bytes
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    frames: int | None = None  #: sampled from it; None: the served default


@dataclass(frozen=True)
class VideoCaptionRecord:
    """An encoded video and everything that was written of it; for captioning and for retrieval."""

    key: str  #: the data set's id of the video
    video: Path
    captions: tuple[str, ...]
    frames: int | None = None  #: sampled from it; None: the served default


@dataclass(frozen=True)
class ExpressionRecord:
    """An expression and the box of what it refers to."""

    key: str
    image: Picture
    expression: str
    box: Box


@dataclass(frozen=True)
class PairRecord:
    """A statement about two pictures; `label` is one of `mplug.contract.NLVR_LABELS`."""

    key: str
    images: tuple[Picture, Picture]
    statement: str
    label: str


@dataclass(frozen=True)
class HypothesisRecord:
    """A hypothesis about a picture; `label` is one of `mplug.contract.ENTAILMENT_LABELS`."""

    key: str
    image: Picture
    hypothesis: str
    label: str


Record = (
    CaptionRecord
    | QuestionRecord
    | VideoQuestionRecord
    | VideoCaptionRecord
    | ExpressionRecord
    | PairRecord
    | HypothesisRecord
)


class PictureError(DatasetError):
    """A file is no picture, or cannot be read; `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def check_keys(records: Sequence[Record], source: object) -> None:
    """Raises DatasetError where two records have one key: results would count one of them twice, and one not at all."""
    seen: dict[str, Record] = {}
    for record in records:
        other = seen.setdefault(record.key, record)
        if other is not record:
            names = [str(each.image) for each in (other, record) if isinstance(getattr(each, "image", None), Path)]
            which = f" ({' and '.join(names)})" if len(names) == 2 else ""
            raise DatasetError(f"{source}: two entries have the key {record.key!r}{which}; keys must differ")


def open_picture(picture: Picture) -> Image.Image:
    """Open a picture as the server would: upright, RGB. Raises PictureError naming a file that is no picture."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    name = name_of(picture)
    try:
        return decode_image(encoded(picture), name=str(name))
    except OSError as error:
        raise PictureError(name, f"{name}: cannot be read: {error.strerror}") from None
    except InvalidRequest as error:
        raise PictureError(name, str(error)) from None


def name_of(picture: Path | EncodedPicture) -> Path:
    """Return what an encoded picture is reported by."""
    return picture.name if isinstance(picture, EncodedPicture) else picture


def encoded(picture: Path | EncodedPicture) -> bytes:
    """Return the bytes of an encoded picture. Raises OSError for a file that cannot be read."""
    return picture.content if isinstance(picture, EncodedPicture) else picture.read_bytes()
