"""Reading annotation files with errors that say which entry is wrong, and finding the pictures they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from builders.data.readers.records import DatasetError


def load_json(path: Path) -> Any:
    """Parse a JSON file. Raises DatasetError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise DatasetError(f"{path}: is not JSON: {' '.join(str(error).split())}") from None


def lines_of(path: Path) -> Iterator[Entry]:
    """Read the mappings of a JSON Lines file. Raises DatasetError naming the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 text: {error.reason}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: is not JSON: {error}") from None
        yield Entry(values, f"{path}, line {number}")


#: Where files that are not there are noted, in place of an error for the first of them.
_MISSING: ContextVar[dict[Path, None] | None] = ContextVar("missing", default=None)


@contextmanager
def missing_files() -> Iterator[dict[Path, None]]:
    """Gather pictures and videos that readers do not find, in the order of the data, in place of errors."""
    gathered: dict[Path, None] = {}
    token = _MISSING.set(gathered)
    try:
        yield gathered
    finally:
        _MISSING.reset(token)


class Entry:
    """One entry of an annotation file: a mapping that complains with its place in the file."""

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, dict):
            raise DatasetError(f"{place}: is {_kind(values)}, not a mapping of names to values")
        self._values, self.place = values, place

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            found = ", ".join(map(str, list(self._values)[:8])) or "none"
            raise DatasetError(f"{self.place}: has no {key!r}; its keys: {found}")
        return self._values[key]

    def text(self, key: str) -> str:
        """A string that is not blank."""
        value = self[key]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text alone."""
        value = self[key]
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(each, str) for each in values):
            raise self.wrong(key, "a text or a list of texts")
        return tuple(values)

    def label(self, key: str, labels: dict[Any, str]) -> str:
        """One of the values that a data set uses for its labels, by our name."""
        value = self[key]
        if not isinstance(value, str | int | bool) or value not in labels:
            raise self.wrong(key, f"one of {', '.join(str(each) for each in labels)}")
        return labels[value]

    def entries(self, key: str) -> Iterator[Entry]:
        """A list of mappings inside this one."""
        return list_of_entries(self[key], f"{self.place}, {key}")

    def wrong(self, key: str, wanted: str) -> DatasetError:
        """The error for a value that is not what it must be."""
        return DatasetError(f"{self.place}: {key} is {_shown(self._values[key])}, not {wanted}")


def list_of_entries(values: Any, place: str) -> Iterator[Entry]:
    """The mappings of a list, each with its place. Raises DatasetError for anything else."""
    if not isinstance(values, list):
        raise DatasetError(f"{place}: is {_kind(values)}, not a list of entries")
    return (Entry(value, f"{place}, entry {index}") for index, value in enumerate(values))


def entries_of(path: Path) -> Iterator[Entry]:
    """The entries of a file that holds a list of mappings."""
    return list_of_entries(load_json(path), str(path))


class Images:
    """A folder of pictures. Each that is asked for must be there: a run of hours does not end at its last entry.

    Without a folder, for those who read references alone, names are taken as they are.
    """

    kind = "image"

    def __init__(self, folder: Path | None) -> None:
        """Raises DatasetError when the folder is not there."""
        if folder is not None and not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder of {self.kind}s")
        self.folder = folder

    def find(self, entry: Entry, *names: str) -> Path:
        """The first of the names that is a file. Raises DatasetError naming the entry and what was looked for."""
        if self.folder is None:
            return Path(names[0])
        for name in names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DatasetError(f"{entry.place}: the {self.kind} {name!r} leads out of the folder of {self.kind}s")
            path = self.folder / name
            if path.is_file():
                return path
        gathered = _MISSING.get()
        if gathered is not None:
            path = self.folder / names[0]
            gathered[path] = None
            return path
        looked_for = " or ".join(dict.fromkeys(names))
        raise DatasetError(f"{entry.place}: no {self.kind} {looked_for} in {self.folder}")


class Videos(Images):
    """A folder of videos, likewise."""

    kind = "video"

    def named(self, entry: Entry, key: str) -> Path:
        """The file of the video that an entry names without its suffix. Raises DatasetError."""
        name = entry.text(key)
        return self.find(entry, f"{name}.mp4", name)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
