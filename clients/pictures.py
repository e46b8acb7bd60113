"""Local pictures: which files of a folder are ones, and how they look to a viewer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from clients.client.calls import ClientError

#: Endings of the formats that the server reads; other files of a folder are no pictures, by their name.
SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)
#: What is drawn on or made smaller here; the server's own limit.
MAX_PIXELS = 64_000_000


def in_folder(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the pictures below a folder, relative to it, sorted; hidden ones and linked folders left out.

    By their names alone: whether a file holds a picture, the server finds out. A folder below it that cannot be
    read stands in the list like a picture that cannot be. Raises ClientError where the folder itself cannot be read.
    """
    folder = Path(folder)
    return sorted(os.path.relpath(path, folder) for path in _walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    unreadable: list[str] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise ClientError(f"{folder} cannot be read: {error.strerror}", "UNREADABLE") from error
        unreadable.append(error.filename)

    for parent, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(parent, name)
    yield from unreadable


def check_file(path: Path) -> os.stat_result:
    """Its size and times; ClientError for what is no regular file: reading a pipe might never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}", "UNREADABLE") from error
    if not path.is_file():
        raise ClientError(f"{path} cannot be read: it is no regular file", "UNREADABLE")
    return status


def as_shown(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as a viewer shows it: upright, in RGB, on white where it is transparent, its first frame.

    Raises ClientError.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ClientError(f"{path} has {image.width} × {image.height} pixels, too many to draw", "UNREADABLE")
            upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is not a picture, or a broken one"
        raise ClientError(f"{os.fspath(path)} cannot be drawn: {reason}", "UNREADABLE") from error
    if upright.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion cuts off instead of scaling
        upright = Image.fromarray(np.clip(np.asarray(upright, np.int64) >> 8, 0, 255).astype(np.uint8))
    if "transparency" in upright.info or upright.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")
