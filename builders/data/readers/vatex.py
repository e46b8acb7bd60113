"""VATEX: `vatex_public_test_english_v1.1.json`, a list of `videoID` and `enCap` (ten captions).

Videos are `{videoID}.mp4`, as mPLUG's script has them.
"""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Videos, entries_of
from builders.data.readers.records import DatasetError, VideoCaptionRecord

FRAMES = 8  #: `num_frm_test` of the authors' videocap_vatex_mplug_large.yaml


def read(annotations: Path, images: Path, split: str | None = None) -> list[VideoCaptionRecord]:
    """Read a video and its captions per entry; `images` holds the videos. Raises DatasetError."""
    folder = Videos(images)
    records = [
        VideoCaptionRecord(entry.text("videoID"), folder.named(entry, "videoID"), entry.texts("enCap"), FRAMES)
        for entry in entries_of(annotations)
    ]
    if not records:
        raise DatasetError(f"{annotations}: holds no videos")
    return records


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
