"""RefCOCO, RefCOCO+ and RefCOCOg: expressions and their boxes.

- `{unc,unc+,gref_umd}_{train,val,testA,testB}.pth`, as mPLUG's grounding script reads them (TransVG's splits): a
  list of (picture, segmentation, box, expression, attributes). Read without running any code in the file.
- A list of `image`, `text`, `bbox` and perhaps `ref_id` in JSON (`refcoco+_train.json` and the like).

Boxes stand in both as x, y, width, height in pixels.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Entry, Images, entries_of
from builders.data.readers.records import DatasetError, ExpressionRecord

KEYS_OF_SPLITS = ("image", "segmentation", "bbox", "text", "attributes")


def read(annotations: Path, images: Path, split: str | None = None) -> list[ExpressionRecord]:
    """Expressions in the file's order, boxes as corners; `images` holds the pictures of COCO's train2014.

    Raises DatasetError naming the file, entry, key or picture.
    """
    folder = Images(images)
    entries = _tuples(annotations) if annotations.suffix == ".pth" else entries_of(annotations)
    return [_record(entry, index, folder) for index, entry in enumerate(entries)]


def _record(entry: Entry, index: int, folder: Images) -> ExpressionRecord:
    name = entry.text("image")
    box = entry["bbox"]
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise entry.wrong("bbox", "x, y, width and height")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise entry.wrong("bbox", "a box with an area")
    key = str(entry["ref_id"]) if "ref_id" in entry else str(index)
    image = folder.find(entry, name, f"train2014/{name}", Path(name).name)
    return ExpressionRecord(key, image, entry.text("text"), (x, y, x + width, y + height))


def _tuples(path: Path) -> list[Entry]:
    import torch  # only for this layout: whoever reads JSON alone needs none

    try:
        rows = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise DatasetError(
            f"{path}: holds more than lists, texts and numbers, and reading it would run code, which is refused; "
            "save it as JSON: a list of image, text and bbox"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise DatasetError(f"{path}: is not a file of torch's: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: is not a list of expressions")
    for index, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != len(KEYS_OF_SPLITS):
            raise DatasetError(f"{path}, entry {index}: is not ({', '.join(KEYS_OF_SPLITS)})")
    return [
        Entry(dict(zip(KEYS_OF_SPLITS, row, strict=True)), f"{path}, entry {index}") for index, row in enumerate(rows)
    ]


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
