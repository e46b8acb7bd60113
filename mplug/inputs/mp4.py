"""What an MP4 or MOV declares, read before FFmpeg sees it.

FFmpeg builds a table of all samples (frames of a picture or a sound) when it opens such a file, 24 bytes for each that
is declared: a file of 1 KB that declares 80 million of them takes 2.8 GB and half a minute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mplug.errors import InvalidRequest

#: Samples of all tracks, times the entries of a track's edit list. Five minutes have some 30,000.
MAX_SAMPLES = 10**6
MAX_BOXES = 100_000
#: FFmpeg allocates at most 2 GiB at once, so that it refuses more samples than 2 GiB / 24 at once. Larger numbers are
#: no danger, and may be four letters of a title that holds the name of a box ("trunk").
_NEVER_ALLOCATED = 1 << 28

# Name of a box → where its number of entries stands, counted from the name (ISO/IEC 14496-12).
_COUNTED = {b"stsz": 12, b"stz2": 12, b"trun": 8}
_STARTS = (b"moov", b"moof", b"hoov", b"mvhd", b"cmov")
_HANDLER = re.compile(rb"hdlr.{8}(.{4})", re.DOTALL)


def check_mp4(data: bytes, name: str) -> None:
    """Raise InvalidRequest for an MP4 or MOV that declares more samples than anyone records; others pass."""
    if not any(start in data for start in _STARTS):
        return
    samples = edits = 0
    for number, (kind, start, end) in enumerate(_boxes(data, 0, len(data), strict=False)):
        if number >= MAX_BOXES:
            raise InvalidRequest(f"{name} has more than {MAX_BOXES:,} boxes: save it again")
        if kind == b"mdat":
            continue
        part = data[start - 4 : end]  # with its own name
        if b"cmov" in part:
            raise InvalidRequest(f"{name} has a compressed header, which is not read: save it again")
        sounds = list(_sample_by_sample_sounds(part)) if kind == b"moov" else []
        for box, offset in _COUNTED.items():
            for place in _places(part, box):
                if not (box == b"stsz" and any(first <= place < last for first, last in sounds)):
                    samples += _count(part, place + offset)
        edits = max([edits, *(_count(part, place + 8) for place in _places(part, b"elst"))])
    if samples * max(1, edits) > MAX_SAMPLES:
        raise InvalidRequest(
            f"{name} declares {samples:,} frames and sounds in up to {max(1, edits):,} pieces, at most "
            f"{MAX_SAMPLES:,} in all are taken: send a shorter video"
        )


def _boxes(data: bytes, start: int, end: int, *, strict: bool = True) -> Iterator[tuple[bytes, int, int]]:
    """Name, first and last byte of the content of each box in a range; what is no box is the last one's content.

    `strict`: a box that is none or goes beyond the range ends the walk.
    """
    while start + 8 <= end:
        size, kind, content = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        if size == 0:
            size = end - start
        if size < content - start:
            if not strict:
                yield b"", start + 4, end
            return
        if strict and start + size > end:
            return
        yield kind, content, min(start + size, end)
        start += size


def _sample_by_sample_sounds(moov: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of tracks of uncompressed sound, whose samples FFmpeg indexes by chunk: one entry for thousands.

    One table of times that says one unit per sample is how FFmpeg knows them.
    """
    for kind, start, end in _boxes(moov, 4, len(moov)):
        track = moov[start:end]
        if kind != b"trak" or track.count(b"stsz") != 1 or track.count(b"stts") != 1:
            continue
        handlers = set(_HANDLER.findall(track))
        times = track.index(b"stts")
        one_entry, one_unit = track[times + 8 : times + 12], track[times + 16 : times + 20]
        if b"soun" in handlers and b"vide" not in track and one_entry == one_unit == b"\x00\x00\x00\x01":
            yield start, end


def _places(data: bytes, box: bytes) -> Iterator[int]:
    place = data.find(box)
    while place >= 0:
        yield place
        place = data.find(box, place + 1)


def _count(data: bytes, place: int) -> int:
    count = int.from_bytes(data[place : place + 4], "big")
    return count if count < _NEVER_ALLOCATED else 0
