"""Records of a data set → tensors of a task, as the served tasks prepare them.

    maker = TensorMaker(tokenizer, config)
    batch = BATCHES["vqa"](records, maker, Random(0))     # dict of tensors

Names in a batch: `pixel_values` `[B, 3, R, R]`; `*_ids` `[T, L]` from `[CLS]` to `[SEP]`, padded; `image_index` `[T]`,
which image a text belongs to. A picture that several records share is there once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from builders.data.readers.records import (
    CaptionRecord,
    ExpressionRecord,
    HypothesisRecord,
    PairRecord,
    Picture,
    PictureError,
    QuestionRecord,
    Record,
    name_of,
    open_picture,
)
from builders.data.streams import RecordStream, seed_of
from builders.train.fused_states import PAD_ID
from builders.train.objectives.grounding import BoxIds
from mplug.config import MPlugConfig
from mplug.contract import ENTAILMENT_LABELS, NLVR_LABELS
from mplug.inputs.pixels import letterbox_pixel_values, pixel_values
from mplug.inputs.text import clean_caption
from mplug.inputs.tokenizer import Tokenizer

#: Tensors by name, and beside them what is no tensor (references of captions).
Batch = dict[str, object]

UNREADABLE = "unreadable"  #: in a batch: path → message of the pictures that could not be read


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids → int64 `[n, L]`, padded to the longest."""
    ids = np.full((len(rows), max(map(len, rows), default=1)), PAD_ID, np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(ids)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


@dataclass(frozen=True)
class TensorMaker:
    """Texts and pictures → tensors of one checkpoint.

    `crop`: pictures are cropped at random to at least this share of their area before they are resized; 1.0: never.
    Pictures are never mirrored: texts say left and right.
    """

    tokenizer: Tokenizer
    config: MPlugConfig
    crop: float = 1.0

    def ids(self, texts: Sequence[str], *, clean: bool = False) -> Tensor:
        """`[T, L]`; `clean`: as captions and texts to be matched are. What exceeds the checkpoint's length is cut."""
        room = self.config.max_text_length - 2
        rows = []
        for text in texts:
            pieces = self.tokenizer.pieces(clean_caption(text) if clean else text)[:room]
            rows.append([self.tokenizer.cls_id, *pieces, self.tokenizer.sep_id])
        return padded(rows)

    def pixels(self, pictures: Sequence[Picture], random: Random) -> tuple[Tensor, Tensor]:
        """Pictures `[n]` → those that differ, `[B, 3, R, R]`, and the index `[n]` of each among them."""
        size = self.config.vision.image_size
        places: dict[object, int] = {}
        images, index = [], []
        for picture in pictures:
            key = id(picture) if isinstance(picture, np.ndarray) else picture
            if key not in places:
                places[key] = len(images)
                images.append(pixel_values(self._cropped(open_picture(picture), random), size))
            index.append(places[key])
        return torch.from_numpy(np.stack(images)), torch.tensor(index)

    def _cropped(self, image: Image.Image, random: Random) -> Image.Image:
        if self.crop >= 1.0:
            return image
        area, ratio = random.uniform(self.crop, 1.0), random.uniform(3 / 4, 4 / 3)
        width = min(image.width, max(1, round((image.width * image.height * area * ratio) ** 0.5)))
        height = min(image.height, max(1, round((image.width * image.height * area / ratio) ** 0.5)))
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))


def pair_batch(records: Sequence[CaptionRecord], maker: TensorMaker, random: Random) -> Batch:
    """For pre-training and retrieval: each picture with one of its texts. `pair_ids` `[B]`: equal keys, equal ids."""
    pixels, index = maker.pixels([record.image for record in records], random)
    texts = [random.choice(record.captions) for record in records]
    pair_ids = torch.tensor([crc32(record.key.encode()) for record in records])
    return {"pixel_values": pixels[index], "text_ids": maker.ids(texts, clean=True), "pair_ids": pair_ids}


def caption_batch(records: Sequence[CaptionRecord], maker: TensorMaker, random: Random) -> Batch:
    """Each picture with one of its captions as the decoder writes it, and all of them as `references`.

    A captioner that decodes its prompt first learns to write it, and punctuation, as the published ones do.
    """
    config = maker.config
    published = config.caption_states == "image"
    spoken = f"{config.prompt} " if config.prompt and published else ""
    pixels, index = maker.pixels([record.image for record in records], random)
    captions = [spoken + random.choice(record.captions) for record in records]
    return {
        "pixel_values": pixels[index],
        "caption_ids": maker.ids(captions, clean=not published),
        "references": [[clean_caption(caption) for caption in record.captions] for record in records],
    }


def question_batch(records: Sequence[QuestionRecord], maker: TensorMaker, random: Random) -> Batch:
    """Questions, and all their answers with their weights; `question_index` `[A]`: question of each answer."""
    pixels, index = maker.pixels([record.image for record in records], random)
    answers, weights, questions = [], [], []
    for row, record in enumerate(records):
        for answer, weight in record.weighted_answers.items():
            answers.append(answer)
            weights.append(weight)
            questions.append(row)
    return {
        "pixel_values": pixels,
        "image_index": index,
        "question_ids": maker.ids([r.question for r in records]),
        "answer_ids": maker.ids(answers),
        "weights": torch.tensor(weights),
        "question_index": torch.tensor(questions),
    }


def expression_batch(records: Sequence[ExpressionRecord], maker: TensorMaker, random: Random) -> Batch:
    """Expressions and their boxes on the canvas: `boxes` `[T, 4]` in pixels, `box_ids` `[T, 5]`."""
    size, statistics = maker.config.vision.image_size, maker.config.grounding_statistics
    images, boxes, index, places = [], [], [], {}
    for record in records:
        key = id(record.image) if isinstance(record.image, np.ndarray) else record.image
        if key not in places:
            places[key] = (len(images), letterbox_pixel_values(open_picture(record.image), size, statistics))
            images.append(places[key][1][0])
        place, (_, letterbox) = places[key]
        offsets = (letterbox.left, letterbox.top) * 2
        boxes.append([corner * letterbox.ratio + offset for corner, offset in zip(record.box, offsets, strict=True)])
        index.append(place)
    corners = torch.tensor(boxes)
    return {
        "pixel_values": torch.from_numpy(np.stack(images)),
        "image_index": torch.tensor(index),
        "expression_ids": maker.ids([record.expression for record in records]),
        "boxes": corners,
        "box_ids": BoxIds.of(maker.tokenizer, size).tokens(corners),
    }


def statement_batch(records: Sequence[PairRecord], maker: TensorMaker, random: Random) -> Batch:
    """Statements, the images left and right of each, and `labels` `[T]`."""
    pixels, index = maker.pixels([picture for record in records for picture in record.images], random)
    return {
        "pixel_values": pixels,
        "left_index": index[::2],
        "right_index": index[1::2],
        "statement_ids": maker.ids([record.statement for record in records], clean=True),
        "labels": torch.tensor([NLVR_LABELS.index(record.label) for record in records]),
    }


def hypothesis_batch(records: Sequence[HypothesisRecord], maker: TensorMaker, random: Random) -> Batch:
    """Hypotheses and `labels` `[T]`."""
    pixels, index = maker.pixels([record.image for record in records], random)
    return {
        "pixel_values": pixels,
        "image_index": index,
        "hypothesis_ids": maker.ids([record.hypothesis for record in records], clean=True),
        "labels": torch.tensor([ENTAILMENT_LABELS.index(record.label) for record in records]),
    }


#: How the batches of each task are made.
BATCHES: dict[str, Callable[[Sequence[Record], TensorMaker, Random], Batch]] = {
    "pretrain": pair_batch,
    "retrieval": pair_batch,
    "caption": caption_batch,
    "vqa": question_batch,
    "grounding": expression_batch,
    "nlvr": statement_batch,
    "entail": hypothesis_batch,
}


class TaskBatches(Dataset):
    """Batch `index` of a stream as tensors, for a DataLoader that goes on counting.

    Another record of the batch takes the place of one whose picture cannot be read; `batch[UNREADABLE]` says why.
    """

    def __init__(self, task: str, stream: RecordStream, maker: TensorMaker) -> None:
        self.task, self.stream, self.maker = task, stream, maker
        self.files = stream.files
        self._unreadable: dict[Path, str] = {}

    def __getitem__(self, index: int) -> Batch:
        """Return the batch. Raises PictureError where none of its pictures can be read."""
        records = list(self.stream.batch(index))
        while True:
            wrong = {path: self._unreadable[path] for path in self._paths(records) if path in self._unreadable}
            good = [record for record in records if not wrong.keys() & self._paths([record])]
            if wrong and not good:
                raise PictureError(*next(iter(wrong.items())))
            # As many as before: processes that train together need batches of one size.
            chosen = [*good, *islice(cycle(good), len(records) - len(good))]
            try:
                random = Random(seed_of("crops", self.stream.seed, index))
                return {**BATCHES[self.task](chosen, self.maker, random), UNREADABLE: wrong}
            except PictureError as error:
                self._unreadable[error.path] = str(error)

    @staticmethod
    def _paths(records: Sequence[Record]) -> set[Path]:
        pictures = (getattr(record, "images", None) or (record.image,) for record in records)
        return {name_of(picture) for each in pictures for picture in each if not isinstance(picture, np.ndarray)}


def first_batches(
    task: str, stream: RecordStream, maker: TensorMaker, count: int, *, rank: int = 0, world: int = 1
) -> list[Batch]:
    """Return those of the first `count` batches of a stream that process `rank` of `world` looks at in validation.

    They are the same at every call. Unreadable pictures are reported on standard error.
    """
    batches = TaskBatches(task, stream, maker)
    found = [batches[index] for index in range(rank, count, world)]
    for message in {path: text for batch in found for path, text in batch.pop(UNREADABLE).items()}.values():
        print(f"left out of validation: {message}", file=sys.stderr)
    return found
