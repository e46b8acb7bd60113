"""Flickr30K captions: `flickr30k_{train,val,test}.json`, or Karpathy's `dataset_flickr30k.json`."""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers import karpathy
from builders.data.readers.records import CaptionRecord


def read(annotations: Path, images: Path | None, split: str | None = None) -> list[CaptionRecord]:
    """See `karpathy.read`; `images` holds `flickr30k-images/`."""
    return karpathy.read(annotations, images, split)


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
