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
#: Segments of a JPEG (tables, profiles, previews, scans); cameras write some dozens.
MAX_JPEG_SEGMENTS = 4_096
#: A PPM's header is three numbers, and comments.
MAX_PPM_HEADER = 4_096
#: Comments of a PPM written as text; Pillow copies a mebibyte for each.
MAX_PPM_COMMENTS = 1_000
#: Blocks of a GIF up to the end of its first frame. A block holds 255 bytes, so 32 MiB are 132,000 full ones.
MAX_GIF_BLOCKS = 200_000
#: PNG encoders write some kilobytes of pixels a chunk.
MAX_PNG_CHUNKS = 65_536

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The chunks that say what is seen: critical ones, transparency, and EXIF for the orientation.
_PNG_SEEN = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_MAX_EXIF = 1 << 16
_GIF_CONTROL = b"!\xf9"  # transparency

# First bytes → format, to tell a damaged picture from something that never was one.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    PNG_SIGNATURE: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",  # BigTIFF
    b"MM\x00+": "TIFF",
}

_JPEG_EOI, _JPEG_SOS, _JPEG_COMMENT = 0xD9, 0xDA, 0xFE
_JPEG_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
_JPEG_APP = range(0xE0, 0xF0)
_JPEG_JFIF, _JPEG_EXIF, _JPEG_ADOBE = 0xE0, 0xE1, 0xEE
# In compressed data, 0xFF is followed by 0 (a byte of data) or a restart marker; anything else is the next marker.
# No `+` behind the first byte: on a long run of 0xFF it would be tried from each of them.
_JPEG_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
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

    segments: int
    scans: int
    ended: bool  #: whether the marker that ends the image is there
    seen: bytes  #: the file without what is not seen: profiles, previews, comments, all EXIF segments but the first

    @classmethod
    def read(cls, data: bytes) -> JpegStructure:
        """Walk to the end of the first image; what is appended to it (a film, a second picture) does not count."""
        segments, scans, position, ended, exif = 0, 0, 2, False, False
        kept = [data[:2]]
        while segments <= MAX_JPEG_SEGMENTS and scans <= MAX_JPEG_SCANS:
            marker = _JPEG_NEXT_MARKER.search(data, position)
            if marker is None:
                break
            kind, position = marker[1][0], marker.end()
            if kind == _JPEG_EOI:
                ended = True
                break
            if kind in _JPEG_ALONE:
                continue
            segments += 1
            end = position + int.from_bytes(data[position : position + 2], "big")
            if kind == _JPEG_SOS:
                if not scans:  # from here on, the decoder reads what there is
                    kept.append(data[marker.start() :])
                scans += 1
            elif not scans:
                is_exif = kind == _JPEG_EXIF and data[position + 2 : position + 8] == b"Exif\0\0"
                unseen = kind == _JPEG_COMMENT or (kind in _JPEG_APP and kind not in (_JPEG_JFIF, _JPEG_ADOBE))
                if not unseen or (is_exif and not exif):
                    kept.append(data[marker.start() : end])
                exif = exif or is_exif
            position = end
        return cls(segments, scans, ended, b"".join(kept))


def check_jpeg(structure: JpegStructure, name: str) -> None:
    """Raise InvalidRequest for a JPEG of more segments or scans than any encoder writes."""
    if structure.segments > MAX_JPEG_SEGMENTS:
        raise InvalidRequest(f"{name} is a JPEG of more than {MAX_JPEG_SEGMENTS:,} segments: save it again")
    if structure.scans > MAX_JPEG_SCANS:
        raise InvalidRequest(f"{name} is a JPEG of more than {MAX_JPEG_SCANS} scans: save it again as a plain JPEG")


def check_jpeg_work(structure: JpegStructure, pixels: int, name: str) -> None:
    """Raise InvalidRequest for a JPEG whose decoding would take too long."""
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


def seen_gif(data: bytes, name: str) -> bytes:
    """Return a GIF reduced to its first frame; a damaged one as far as its blocks can be read.

    Raises InvalidRequest for more blocks before the end of that frame than any encoder writes.
    """
    position = 13 + _gif_palette(data[10:11])
    kept, blocks = [data[:position]], 0
    while position < len(data):
        start, kind = position, data[position : position + 1]
        if kind == b",":
            position += 11 + _gif_palette(data[position + 9 : position + 10])
        elif kind == b"!":
            position += 2
        elif kind == b";":
            break
        else:  # what is between blocks is skipped
            position += 1
        while kind in (b",", b"!") and position < len(data):
            length = data[position]
            position += 1 + length
            blocks += 1
            if not length or blocks > MAX_GIF_BLOCKS:
                break
        blocks += 1
        if blocks > MAX_GIF_BLOCKS:
            raise InvalidRequest(f"{name} is a GIF of more than {MAX_GIF_BLOCKS:,} blocks: save it again")
        if kind == b"," or data[start : start + 2] == _GIF_CONTROL:
            kept.append(data[start:position])
        if kind == b",":
            if position <= len(data):
                kept.append(b";")
            break
    return b"".join(kept)


def _gif_palette(flags: bytes) -> int:
    """Bytes of the colour table that the flags of a screen or a frame announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def check_ppm(data: bytes, name: str) -> None:
    """Raise InvalidRequest for a PPM whose header is longer than any that is written."""
    header = re.sub(rb"#[^\r\n]*", b"", data[:MAX_PPM_HEADER])
    numbers = 2 if data[1:2] in b"14" else 3
    # A last number at the very end of what was looked at might go on.
    complete = len((header + b"x").split()) > 1 + numbers
    if not complete and len(data) > MAX_PPM_HEADER:
        raise InvalidRequest(f"{name} is a PPM with a header of more than {MAX_PPM_HEADER:,} bytes")
    if data[1:2] in b"123" and data.count(b"#") > MAX_PPM_COMMENTS:
        raise InvalidRequest(f"{name} is a PPM with more than {MAX_PPM_COMMENTS:,} comments: save it again")
