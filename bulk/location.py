"""A path or a URI → an Arrow filesystem and a path in it. Relative paths are made absolute here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException, fs

from bulk.errors import BulkError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Location:
    """A file or folder on any filesystem that Arrow reads."""

    name: str  #: as messages and the manifest have it: an absolute path, or the URI
    filesystem: fs.FileSystem
    path: str  #: within the filesystem, without a slash at the end

    @classmethod
    def of(cls, text: str) -> Location:
        """Return the location of a path or of a URI like `s3://bucket/folder`. Raises BulkError for an unknown one."""
        if not _SCHEME.match(text):
            path = str(Path(text).absolute())
            return cls(path, fs.LocalFileSystem(), path)
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (ArrowException, OSError, ValueError) as error:
            raise BulkError(f"{text} is not a location that Arrow reads: {one_line(error)}") from error
        return cls(text.rstrip("/"), filesystem, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def info(self) -> fs.FileInfo:
        """Return what is there. Raises BulkError when the filesystem does not answer."""
        try:
            return self.filesystem.get_file_info(self.path)
        except (ArrowException, OSError) as error:
            raise BulkError(f"{self.name} cannot be read: {one_line(error)}") from error

    def files(self) -> list[tuple[str, int | None]]:
        """Return the files below a folder and their sizes, by name below it; hidden ones (`.`, `_`) are left out.

        A link to nothing counts as a file without a size: it is an input that cannot be read. Raises BulkError.
        """
        try:
            found = _walk(self.path) if self.is_local else self._listed()
        except (ArrowException, OSError) as error:
            raise BulkError(f"{self.name} cannot be read: {one_line(error)}") from error
        return sorted((name, size) for name, size in found if not re.search(r"(^|/)[._]", name))

    def _listed(self) -> list[tuple[str, int | None]]:
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        return [(self.relative(info.path), info.size) for info in infos if info.type == fs.FileType.File]

    def relative(self, path: str) -> str:
        """Return a path below this folder as it is seen from it."""
        return path.removeprefix(self.path).lstrip("/")


def _walk(folder: str) -> list[tuple[str, int | None]]:
    """List a local folder; Arrow leaves out links to nothing."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[tuple[str, int | None]] = []
    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = os.path.join(parent, name)
            size = os.stat(path).st_size if os.path.exists(path) else None
            found.append((os.path.relpath(path, folder), size))
    return found


def one_line(error: object) -> str:
    """Return an error's text on one line; the message of an operating system's error alone."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())
