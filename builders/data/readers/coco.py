"""COCO captions in Karpathy's splits: `dataset_coco.json`, or `coco_karpathy_{train,val,test}.json` and the like."""

from __future__ import annotations

from pathlib import Path

from builders.data.readers import karpathy
from builders.data.readers.records import CaptionRecord


def read(annotations: Path, images: Path, split: str | None = None) -> list[CaptionRecord]:
    """See `karpathy.read`; `images` holds `train2014/` and `val2014/`."""
    return karpathy.read(annotations, images, split)
