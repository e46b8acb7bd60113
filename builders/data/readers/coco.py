"""COCO captions in Karpathy's splits: `dataset_coco.json`, or `coco_karpathy_{train,val,test}.json` and the like.

COCO's own files (`captions_val2014.json`, `coco_karpathy_test_gt.json`: `annotations` of `image_id` and `caption`) are
read, too.
"""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers import karpathy
from builders.data.readers.annotations import Entry, Images, load_json
from builders.data.readers.records import CaptionRecord, DatasetError


def read(annotations: Path, images: Path | None, split: str | None = None) -> list[CaptionRecord]:
    """See `karpathy.read`; `images` holds `train2014/` and `val2014/`, or the pictures themselves."""
    content = load_json(annotations)
    if isinstance(content, dict) and "annotations" in content:
        return _official(Entry(content, str(annotations)), images)
    return karpathy.read(annotations, images, split)


def _official(document: Entry, images: Path | None) -> list[CaptionRecord]:
    folder = Images(images)
    captions: dict[str, list[str]] = {}
    for entry in document.entries("annotations"):
        captions.setdefault(str(entry["image_id"]), []).append(entry.text("caption"))
    records = []
    for entry in document.entries("images"):
        key = str(entry["id"])
        if key not in captions:
            raise DatasetError(f"{entry.place}: picture {key} has no captions")
        path = Path(key) if images is None else folder.find(entry, *_names(entry.text("file_name")))
        records.append(CaptionRecord(key, path, tuple(captions[key])))
    return records


def _names(name: str) -> tuple[str, ...]:
    """`COCO_val2014_000000391895.jpg` may lie in `val2014/`."""
    parts = Path(name).name.split("_")
    return (name, f"{parts[1]}/{name}") if len(parts) > 2 else (name,)


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
