"""What an encoded image says of itself, read from its bytes before any decoder sees them.

Decoders do what a file tells them to: a JPEG of 381 KiB may ask for 150 passes over 64 megapixels, and a PNG that
every viewer shows may hold a colour profile that Pillow refuses to unpack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mplug.errors import InvalidRequest

#: Scans of a JPEG; encoders write one, three or about ten.
MAX_JPEG_SCANS = 100
#: Scans × pixels: each scan is a pass over all of the picture. 64 megapixels may have 15, 10 megapixels 100.
MAX_JPEG_WORK = 10**9
#: A PPM's header is three numbers, and comments.
MAX_PPM_HEADER = 4_096
#: PNG encoders write some kilobytes of pixels a chunk.
MAX_PNG_CHUNKS = 65_536

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The chunks that say what is seen: critical ones, transparency, and EXIF for the orientation.
_PNG_SEEN = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_MAX_EXIF = 1 << 16

# First bytes → format, to tell a damaged picture from something that never was one.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    PNG_SIGNATURE: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}

_JPEG_EOI, _JPEG_SOS = 0xD9, 0xDA
_JPEG_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
# In compressed data, 0xFF is followed by 0 (a byte of data) or a restart marker; anything else is the next marker.
_JPEG_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
# Compressed data that no encoder has written; see `completed_jpeg`.
_NOISE = bytes(range(1, 128)) * 2


def signature(data: bytes) -> str | None:
    """Return the format that the first bytes stand for, by Pillow's name; None for no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    return next((kind for first, kind in _SIGNATURES.items() if data.startswith(first)), None)


@dataclass(frozen=True)
class JpegStructure:
    """What a walk over a JPEG's markers finds."""

    scans: int
    ended: bool  #: whether the marker that ends the image is there

    @classmethod
    def read(cls, data: bytes) -> JpegStructure:
        """Walk to the end of the first image; what is appended to it (a film, a second picture) does not count."""
        scans, position = 0, 2
        while True:
            marker = _JPEG_NEXT_MARKER.search(data, position)
            if marker is None:
                return cls(scans, False)
            kind, position = marker[1][0], marker.end()
            if kind == _JPEG_EOI:
                return cls(scans, True)
            if kind in _JPEG_ALONE:
                continue
            scans += kind == _JPEG_SOS
            if scans > MAX_JPEG_SCANS:
                return cls(scans, False)
            position += int.from_bytes(data[position : position + 2], "big")


def check_jpeg(structure: JpegStructure, pixels: int, name: str) -> None:
    """Raise InvalidRequest for a JPEG whose decoding would take too long."""
    if structure.scans > MAX_JPEG_SCANS:
        raise InvalidRequest(f"{name} is a JPEG of more than {MAX_JPEG_SCANS} scans: save it again as a plain JPEG")
    if structure.scans * pixels > MAX_JPEG_WORK:
        raise InvalidRequest(
            f"{name} is a JPEG of {structure.scans} scans over {pixels:,} pixels, more than {MAX_JPEG_WORK:,} in all: "
            "save it again as a plain JPEG"
        )


def completed_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG without its end, ended in two ways: at once, and after bytes that no encoder has written.

    A decoder that has all of the picture needs no more data, so that both give the same pixels; where some is missing,
    those bytes are taken for it and the pixels differ.
    """
    body = data.rstrip(b"\xff")
    return body + b"\xff\xd9", body + _NOISE + b"\xff\xd9"


def seen_png(data: bytes, name: str) -> bytes:
    """Return a PNG reduced to the chunks that say what is seen; a damaged one as far as its chunks can be read.

    Viewers show a picture whose profile, text or resolution is damaged. Raises InvalidRequest for more chunks than
    any encoder writes.
    """
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):  # cut off: the decoder says so
            kept.append(data[position:])
            return b"".join(kept)
        if kind in _PNG_SEEN or (kind == b"eXIf" and length <= _MAX_EXIF):
            kept.append(data[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    raise InvalidRequest(f"{name} is a PNG of more than {MAX_PNG_CHUNKS:,} chunks: save it again")


def check_ppm(data: bytes, name: str) -> None:
    """Raise InvalidRequest for a PPM whose header is longer than any that is written."""
    header = re.sub(rb"#[^\r\n]*", b"", data[:MAX_PPM_HEADER])
    numbers = 2 if data[1:2] in b"14" else 3
    # A last number at the very end of what was looked at might go on.
    complete = len((header + b"x").split()) > 1 + numbers
    if not complete and len(data) > MAX_PPM_HEADER:
        raise InvalidRequest(f"{name} is a PPM with a header of more than {MAX_PPM_HEADER:,} bytes")
