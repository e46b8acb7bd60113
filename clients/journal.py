"""JSON lines that outlive the process that writes them: whoever is killed has lost at most the line being written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from clients.client import ClientError

#: How every line of ours begins, since each is an object; a file that begins otherwise is somebody else's.
_BEGINNING = b'{"'


class Journal:
    """A file of JSON objects, one a line, open for appending by this process alone.

    `entries` are those that stood in it: a last line that was not written to its end is cut off. Raises ClientError
    where the file cannot be written, another process writes it, or it holds anything else.
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
        """Handed to the system before this returns: it then outlives this process, though not a power failure."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def replace(self, entries: Iterable[dict[str, Any]]) -> None:
        """All lines at once: a reader sees the old ones or the new ones, whatever happens meanwhile."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        file = self._locked(temporary)
        try:
            file.truncate(0)
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = file

    @staticmethod
    def _locked(path: Path) -> BinaryIO:
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
        entries, end = [], 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n") and line.startswith(_BEGINNING[: len(line)]):
                break  # only the last one can lack its end
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise ClientError(f"{self.path} line {number} is no JSON object: give another file, this one is kept")
            entries.append(entry)
            end += len(line)
        self._file.truncate(end)
        return entries
