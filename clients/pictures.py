"""Which files of a folder are pictures, and which are videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clients.client.errors import ClientError

#: Endings of the formats that the server reads; other files of a folder are not pictures, by their names.
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


#: Endings of the videos that the server reads; a GIF counts as a picture.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".asf", ".ogv", ".3gp")
)


def as_arguments(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the argument of `Client` that a file is sent by: `image`, or by its name `video`."""
    return {"video" if Path(path).suffix.lower() in VIDEO_SUFFIXES else "image": str(path)}


def in_folder(folder: str | os.PathLike[str], *, videos: bool = False) -> list[str]:
    """Return paths of the pictures below a folder, relative to it, sorted; hidden ones and linked folders are left out.

    `videos`: those, too. By their names alone: the server finds out whether a file holds a picture. A folder below it
    that cannot be read is listed like a picture that cannot be. Raises ClientError where the folder itself cannot be
    read.
    """
    folder = Path(folder)
    suffixes = SUFFIXES | VIDEO_SUFFIXES if videos else SUFFIXES
    return sorted(os.path.relpath(path, folder) for path in _walk(folder, suffixes))


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[str]:
    unreadable: list[str] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise ClientError(f"{folder} cannot be read: {error.strerror}", "UNREADABLE") from error
        unreadable.append(error.filename)

    for parent, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield os.path.join(parent, name)
    yield from unreadable


def check_file(path: Path) -> os.stat_result:
    """Return a file's size and times. Raises ClientError unless it is a regular file: a pipe might never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}", "UNREADABLE") from error
    if not path.is_file():
        raise ClientError(f"{path} cannot be read: it is not a regular file", "UNREADABLE")
    return status
