"""JSON lines that outlive the process that writes them: killed at any time, it loses at most the line being written."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from clients.client import ClientError

#: The first line of every file of ours; a file that begins otherwise is somebody else's, and is kept.
HEADER = {"format": "mplug-batch", "version": 1}
_FIRST_LINE = json.dumps(HEADER).encode() + b"\n"


class Journal:
    """A file of JSON objects, one a line after a header, open for appending by this process alone.

    `entries` are those that were in it: a last line that was not written to its end is cut off. Raises ClientError
    when the file cannot be written, another process writes it, or it holds anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._locked(path)
        try:
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Hand an entry to the system: it then outlives this process, though not a power failure."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def replace(self, entries: Iterable[dict[str, Any]]) -> None:
        """Replace all entries at once: a reader sees the old ones or the new ones, whatever happens meanwhile."""
        target = self.path.resolve()  # a link stays one
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        file = os.fdopen(handle, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(handle, stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            file.write(_FIRST_LINE)
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
            file.flush()
            os.fsync(handle)
            os.replace(name, target)
        except BaseException:
            file.close()
            Path(name).unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = file

    @staticmethod
    def _locked(path: Path) -> BinaryIO:
        if path.exists() and not path.is_file():
            raise ClientError(f"{path} cannot be written: it is not a regular file", "UNREADABLE")
        try:
            file = path.open("a+b")
        except OSError as error:
            raise ClientError(f"{path} cannot be written: {error.strerror}", "UNREADABLE") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ClientError(f"{path} is being written by another process", "ABORTED") from error
        return file

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        first = self._file.readline(len(_FIRST_LINE))
        if not first:
            self._file.write(_FIRST_LINE)
            self._file.flush()
            return []
        if first != _FIRST_LINE:
            raise ClientError(
                f"{self.path} was not written by this command (its first line is not {_FIRST_LINE.decode().strip()}): "
                "give another file, this one is kept"
            )
        entries, end = [], len(first)
        for number, line in enumerate(self._file, 2):
            if not line.endswith(b"\n"):
                break  # only the last one can lack its end
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise ClientError(
                    f"{self.path} line {number} is not a JSON object: give another file, this one is kept"
                )
            entries.append(entry)
            end += len(line)
        self._file.truncate(end)
        return entries
