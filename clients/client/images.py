"""Local files and pictures: how they are read, and which pixels of a picture client and server both see.

The server decodes the file that a path names; what is decoded here (pictures in memory, thumbnails, drawings) follows
the same rules, so that both look at the same pixels.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps

from .errors import ClientError

#: Formats that are opened, by Pillow's names; the server opens the same. Pillow knows forty more, and one of them,
#: PostScript, starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Larger files are not read: the server takes a video of this size at most, and a picture of half of it.
MAX_FILE_BYTES = 64 << 20
#: Width × height of a picture that is decoded here; the server's own limit.
MAX_PIXELS = 64_000_000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SEEN = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
_JPEG_END = b"\xff\xd9"
_NOISE = bytes(range(1, 128)) * 2  # compressed data that no encoder has written


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes. Raises ClientError when it cannot be read or exceeds `MAX_FILE_BYTES`."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ClientError(f"{os.fspath(path)} cannot be read: {reason}", "UNREADABLE") from error
    if len(data) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES >> 20} MiB, the most that the server accepts"
        raise ClientError(f"{os.fspath(path)} cannot be read: it has more than {limit}", "UNREADABLE")
    return data


def as_shown(path: str | os.PathLike[str]) -> Image.Image:
    """Return a picture as a viewer shows it: its first frame, upright, in RGB, on white where it is transparent.

    Raises ClientError when it is in none of `FORMATS`, damaged, or larger than `MAX_PIXELS`.
    """
    data = read_file(path)
    try:
        return _decoded(data)
    except ClientError as error:
        reason, cause = str(error), error
    except Exception as error:  # decoders raise about anything on damaged data
        reason, cause = f"it is not a picture ({', '.join(FORMATS)}), or a damaged one", error
    raise ClientError(f"{os.fspath(path)} cannot be drawn: {reason}", "UNREADABLE") from cause


def as_png(image: Image.Image) -> bytes:
    """Return a picture in memory as a PNG of the pixels that the server would see in its file.

    Raises ClientError when its data is truncated or damaged, or its samples have no defined range.
    """
    if image.format == "EPS":  # decoding it would start Ghostscript
        raise ClientError(f"an EPS image is not accepted: convert it to one of {', '.join(FORMATS)}", "UNREADABLE")
    try:
        _check_size(image)
        try:
            picture = _upright_rgb(image)
        except OSError:  # of a file that is damaged, though viewers may show it
            if getattr(image, "fp", None) is None:
                raise
            image.fp.seek(0)
            picture = _decoded(image.fp.read(MAX_FILE_BYTES))
    except ClientError as error:
        raise ClientError(f"the image cannot be sent: {error}", "UNREADABLE") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClientError(
            f"the image cannot be sent: its {image.format or image.mode} data cannot be decoded ({reason})",
            "UNREADABLE",
        ) from error
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _decoded(data: bytes) -> Image.Image:
    """Return the picture in a file, upright and in RGB; raises whatever the decoder raises.

    As viewers do, and the server: a PNG is read whatever its profile, text or resolution holds, and a JPEG without its
    end where nothing of the picture is missing.
    """
    data = _seen_png(data) if data.startswith(_PNG_SIGNATURE) else data
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image)
        try:
            return _upright_rgb(image)
        except OSError:
            if image.format != "JPEG":
                raise
    body = data.rstrip(b"\xff")
    # A decoder that has all of the picture gives the same pixels whatever follows.
    ended = [Image.open(io.BytesIO(body + end), formats=("JPEG",)) for end in (_JPEG_END, _NOISE + _JPEG_END)]
    first, second = map(_upright_rgb, ended)
    if ImageChops.difference(first, second).getbbox() is not None:
        raise OSError("image file is truncated")
    return first


def _seen_png(data: bytes) -> bytes:
    """Return a PNG reduced to the chunks that say what is seen; a damaged one as far as its chunks can be read."""
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position < len(data):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if kind in _PNG_SEEN or end > len(data):  # cut off: the decoder says so
            kept.append(data[position:end])
        if kind == b"IEND":
            break
        position = end
    return b"".join(kept)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ClientError(f"it has {image.width:,} × {image.height:,} pixels, more than {MAX_PIXELS:,} in all")


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Return a copy without metadata; raises whatever the decoder raises."""
    image.load()
    orientation = _orientation(image)  # only now: Pillow turns TIFFs upright while loading and then drops the tag
    picture = _to_rgb(image)
    # The rest of the metadata (text where EXIF wants a number, a huge colour profile) must not fail the picture.
    picture.info = {}
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    picture = ImageOps.exif_transpose(picture)
    picture.info = {}
    return picture


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; unreadable EXIF counts as upright, since the picture itself is fine."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture of any mode in RGB, 8 bit."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow has no direct way
        picture = Image.new("RGB", image.size, "white")
        picture.paste(layer, mask=layer.getchannel("A"))
        return picture
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Return grey of 16 bits in RGB by its high byte; Pillow's own conversion clips it at 255, that is to white."""
    samples = np.asarray(image)
    if image.mode == "F" or samples.min() < 0 or samples.max() > 0xFFFF:
        raise ClientError("it has 32-bit samples, whose range is not defined: use 8 or 16 bits per channel")
    grey = (samples.astype(np.uint16) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
