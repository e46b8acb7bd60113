"""MSRVTT's 1K test split for retrieval: `msrvtt_test.jsonl`, lines of `clip_name` and `caption`.

The layout of the file that mPLUG's script downloads (ALPRO's); videos are `{clip_name}.mp4`.
"""

from __future__ import annotations

from pathlib import Path

from builders.data import sources
from builders.data.readers.annotations import Videos, lines_of
from builders.data.readers.records import DatasetError, VideoCaptionRecord

FRAMES = 12  #: `num_frm_test` of the authors' retrieval_msrvtt_mplug_large.yaml


def read(annotations: Path, images: Path, split: str | None = None) -> list[VideoCaptionRecord]:
    """Read a video and its caption per line; `images` holds the videos. Raises DatasetError."""
    folder = Videos(images)
    records = [
        VideoCaptionRecord(entry.text("clip_name"), folder.named(entry, "clip_name"), entry.texts("caption"), FRAMES)
        for entry in lines_of(annotations)
    ]
    if not records:
        raise DatasetError(f"{annotations}: holds no videos")
    return records


class Source(sources.Source):
    """See the module."""

    read = staticmethod(read)
