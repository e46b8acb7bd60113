"""Captions of pictures, in the three layouts in which COCO and Flickr30K go round.

- Karpathy's `dataset_*.json`: `images`, each with `filepath`, `filename`, `split` and `sentences`.
- A list of the same entries, one file per split, as mPLUG's captioning script reads it.
- A list of `image` and `caption`, one text per entry in training files and all of a picture's in the others, as
  ALBEF's and mPLUG's retrieval scripts read it.
"""

from __future__ import annotations

import re
from pathlib import Path

from builders.data.readers.annotations import Entry, Images, list_of_entries, load_json
from builders.data.readers.records import CaptionRecord, DatasetError, check_keys

#: Karpathy's splits that one of ours takes in.
SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def read(annotations: Path, images: Path | None, split: str | None = None) -> list[CaptionRecord]:
    """One record per picture, with all of its captions; `key` as in `key_of`.

    `split` (train, val, test) is needed for a file that holds all of them, and changes nothing for the others.
    `images` None: paths stand as in the file, and need not be there. Raises DatasetError naming the file, entry, key
    or picture, and for two pictures with one key.
    """
    content, folder = load_json(annotations), Images(images)
    if isinstance(content, dict):
        entries = list(Entry(content, str(annotations)).entries("images"))
        if split not in SPLITS:
            raise DatasetError(f"{annotations}: holds several splits; name one of {', '.join(SPLITS)}")
        entries = [entry for entry in entries if entry.text("split") in SPLITS[split]]
    else:
        entries = list(list_of_entries(content, str(annotations)))
    if not entries:
        raise DatasetError(f"{annotations}: holds no pictures{f' of the split {split}' if split else ''}")
    captions: dict[Path, list[str]] = {}
    for entry in entries:
        captions.setdefault(_image(entry, folder), []).extend(_captions(entry))
    records = [CaptionRecord(key_of(path), path, tuple(texts)) for path, texts in captions.items()]
    check_keys(records, annotations)
    return records


def key_of(image: Path) -> str:
    """Return what results files call a picture: its name without suffix; of COCO's names, and of numbers, the number.

    `COCO_val2014_000000391895.jpg` and `000000391895.jpg` → "391895"; `cats_001.jpg` → "cats_001".
    """
    number = re.fullmatch(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)", image.stem)
    return number[1] if number else image.stem


def _image(entry: Entry, folder: Images) -> Path:
    if "image" in entry:
        return folder.find(entry, entry.text("image"))
    name = entry.text("filename")
    place = entry.text("filepath") if "filepath" in entry else ""
    return folder.find(entry, f"{place}/{name}" if place else name, f"{place}_img/{name}", name)


def _captions(entry: Entry) -> tuple[str, ...]:
    if "caption" in entry:
        return entry.texts("caption")
    return tuple(sentence.text("raw") for sentence in entry.entries("sentences"))
