"""An index of pictures on disk: one SQLite file with the features and what was embedded when.

    settings   the folder of the pictures, the checkpoint's probe, and whether the index was ever finished
    pictures   the index as it is searched: path, size, time, and the feature or the reason why there is none
    pending    what has been embedded since, until it takes its place in one transaction

A reader sees the old index or the new one, and an indexing that was killed goes on from what is pending. A file is
recognised by the application id in its header; any other file is refused and kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from clients.client import ClientError

#: Embedded with every index: another checkpoint gives another feature, and mixing the two gives nonsense.
PROBE = "a dog"  # short: what a checkpoint takes of a text is limited
#: Cosine of one checkpoint's features of one text, in whatever precision it is compiled, at least.
_SAME_CHECKPOINT = 0.99

_APPLICATION_ID = int.from_bytes(b"mPLG", "big")
_FORMAT = 2
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE settings (folder BLOB NOT NULL, probe BLOB NOT NULL, finished INTEGER NOT NULL);
CREATE TABLE pictures (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, reason TEXT, feature BLOB) WITHOUT ROWID;
CREATE TABLE pending (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, reason TEXT, feature BLOB) WITHOUT ROWID;
"""
_WAIT_SECONDS = 10.0  # for another process that is writing


@dataclass(frozen=True)
class Picture:
    """A picture of the folder as it was when it was embedded, or refused for a reason."""

    path: str  #: relative to the folder
    size: int  #: bytes
    modified: int  #: nanoseconds since 1970
    reason: str = ""  #: why there is no feature of it


@dataclass(frozen=True)
class Index:
    """An index that was read."""

    folder: Path  #: of the pictures
    probe: np.ndarray  #: float32 [E]
    pictures: Sequence[Picture]  #: those that have a feature, n of them
    refused: Sequence[Picture]  #: the others
    features: np.ndarray  #: float32 [n, E]
    probe_text = PROBE

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read an index. Raises ClientError when there is none, when it was never finished, or when it is damaged."""
        with _opened(path) as database:
            folder, probe, finished = _settings(database)
            if not finished:
                raise ClientError(f"{path}: indexing was interrupted: index the folder again", "UNREADABLE")
            pictures, refused, features = [], [], []
            for row in database.execute("SELECT path, size, modified, reason, feature FROM pictures ORDER BY path"):
                picture = _picture(*row[:4])
                if row[4] is None:
                    refused.append(picture)
                    continue
                feature = _unpacked(row[4])
                if feature.shape != probe.shape:
                    raise ValueError(f"a feature of {len(feature)} numbers where {len(probe)} are expected")
                pictures.append(picture)
                features.append(feature)
            matrix = np.stack(features) if features else np.zeros((0, len(probe)), np.float32)
            return cls(folder, probe, pictures, refused, matrix)

    def nearest(self, feature: np.ndarray, count: int) -> list[tuple[str, float]]:
        """Return the paths of the most similar pictures with their similarities, best first; exact."""
        # Not by BLAS: where others use the cores, its threads wait for each other longer than the product takes.
        similarities = np.einsum("ij,j->i", self.features, np.asarray(feature, np.float32))
        count = min(count, len(similarities))
        best = np.argpartition(-similarities, count - 1)[:count] if count else np.zeros(0, int)
        best = best[np.argsort(-similarities[best], kind="stable")]
        return [(str(self.folder / self.pictures[row].path), float(similarities[row])) for row in best]

    def check_probe(self, probe: np.ndarray, path: Path) -> None:
        """Raise ClientError when the server's checkpoint is not the one that made the index."""
        if not same_checkpoint(self.probe, probe):
            raise ClientError(f"{path} was made by another checkpoint than the server's: index the folder anew")


class IndexWriter:
    """What was embedded before and since, whoever interrupted it; open for this process alone.

    Raises ClientError when the file is anything but an index, or an index of another folder or another checkpoint, or
    when another process writes it.
    """

    def __init__(self, path: Path, folder: Path, probe: np.ndarray) -> None:
        self.path, self.folder, self.probe = path, folder.resolve(), np.asarray(probe, np.float32)
        self._resources = contextlib.ExitStack()
        self._is_logging = False
        _create(path, self.folder, self.probe)
        _check_header(path)
        with self._resources:  # closes what is open where this fails
            self._resources.enter_context(_locked(path))
            self._database = self._resources.enter_context(_opened(path, writable=True))
            old_folder, old_probe, _ = _settings(self._database)
            # A folder that was moved leaves its index behind: the pictures are the same.
            if old_folder != self.folder and old_folder.exists():
                raise ClientError(f"{path} is an index of {old_folder}: give another --output")
            if not same_checkpoint(old_probe, self.probe):
                raise ClientError(f"{path} was made by another checkpoint than the server's: give another --output")
            #: By path: what is embedded or refused, as it was then.
            self.known: dict[str, Picture] = {}
            for table in ("pictures", "pending"):  # the later one counts
                for row in self._database.execute(f"SELECT path, size, modified, reason FROM {table}"):
                    picture = _picture(*row)
                    self.known[picture.path] = picture
            self._resources = self._resources.pop_all()

    def is_known(self, picture: Picture) -> bool:
        """Return whether it was embedded, or refused, as it is now."""
        found = self.known.get(picture.path)
        return found is not None and replace(found, reason="") == replace(picture, reason="")

    def refuse(self, picture: Picture, reason: str) -> None:
        """Note that it has no feature; it is not asked about again until it changes."""
        self.add(replace(picture, reason=reason), None)

    def add(self, picture: Picture, feature: np.ndarray | None) -> None:
        """Note a picture and its feature, float32 [E]; it outlives this process from now on."""
        if not self._is_logging:
            self._database.execute("PRAGMA journal_mode = WAL")  # a commit waits for no disk then
            self._is_logging = True
        row = (os.fsencode(picture.path), picture.size, picture.modified, picture.reason)
        with self._database:
            packed = None if feature is None else _packed(feature)
            self._database.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?)", (*row, packed))
        self.known[picture.path] = picture

    def finish(self, paths: Iterable[str]) -> Index:
        """Make these paths the index, in place of what it was, and read it; paths that are not known are left out."""
        kept = {os.fsencode(path) for path in paths if path in self.known}
        query = "SELECT path FROM pictures UNION SELECT path FROM pending"
        gone = {path for (path,) in self._database.execute(query)} - kept
        with self._database:
            if self._database.execute("SELECT 1 FROM pending").fetchone():
                self._database.execute("INSERT OR REPLACE INTO pictures SELECT * FROM pending")
                self._database.execute("DELETE FROM pending")
            self._database.executemany("DELETE FROM pictures WHERE path = ?", [(path,) for path in gone])
            self._database.execute("UPDATE settings SET finished = 1 WHERE NOT finished")
            folder = os.fsencode(self.folder)
            self._database.execute("UPDATE settings SET folder = ? WHERE folder != ?", (folder, folder))
        # One file again, which is read where nothing may be written; a reader at this moment keeps the mode as it is.
        with contextlib.suppress(sqlite3.OperationalError):
            self._database.execute("PRAGMA journal_mode = DELETE")
        return Index.read(self.path)

    def close(self) -> None:
        """Close the file; without `finish`, what was embedded is kept for the next time."""
        self._resources.close()


def same_checkpoint(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two features of the probe are one checkpoint's."""
    return one.shape == other.shape and float(one @ other) > _SAME_CHECKPOINT


def _create(path: Path, folder: Path, probe: np.ndarray) -> None:
    """Make an empty index where there is nothing, or an empty file. Raises ClientError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (not path.is_file() or path.stat().st_size):
            return
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            new = Path(scratch) / "new"
            with contextlib.closing(sqlite3.connect(new)) as database:
                database.executescript(_SCHEMA)
                values = (os.fsencode(folder), _packed(probe), 0)
                with database:
                    database.execute("INSERT INTO settings VALUES (?, ?, ?)", values)
            if path.exists():
                os.replace(new, path.resolve())
            else:
                with contextlib.suppress(FileExistsError):  # another process was faster
                    os.link(new, path)
    except (OSError, sqlite3.Error) as error:
        raise ClientError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}", "UNREADABLE") from error
    with file:  # closed after the database: closing it earlier would drop SQLite's own locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ClientError(f"{path} is being written by another process", "ABORTED") from error
        yield


@contextlib.contextmanager
def _opened(path: Path, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open an index and close it; what fails in between is reported as damage. Raises ClientError."""
    _check_header(path)
    try:
        database = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=_WAIT_SECONDS, check_same_thread=False
        )
        with contextlib.closing(database):
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA query_only = {'OFF' if writable else 'ON'}")
            yield database
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ClientError(
            f"{path}: the index is damaged ({reason}): remove it and index the folder again", "UNREADABLE"
        ) from error


def _check_header(path: Path) -> None:
    """Raise ClientError unless a file is one of ours; SQLite does not touch it before."""
    try:
        if path.is_dir():
            raise ClientError(
                f"{path} is a directory, and an index is one file (those of earlier versions were directories: "
                "index the folder again, with another --output)",
                "UNREADABLE",
            )
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError as error:
        raise ClientError(f"{path}: no index there", "UNREADABLE") from error
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}", "UNREADABLE") from error
    # https://sqlite.org/fileformat.html: the user version at byte 60, the application id at byte 68
    if header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72], "big") != _APPLICATION_ID:
        raise ClientError(f"{path} is not an index: give another file, this one is kept", "UNREADABLE")
    found = int.from_bytes(header[60:64], "big")
    if found != _FORMAT:
        raise ClientError(
            f"{path} has format {found}, this version reads {_FORMAT}: index the folder again", "UNREADABLE"
        )


def _settings(database: sqlite3.Connection) -> tuple[Path, np.ndarray, bool]:
    rows = database.execute("SELECT folder, probe, finished FROM settings").fetchall()
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of settings")
    folder, probe, finished = rows[0]
    return Path(os.fsdecode(folder)), _unpacked(probe), bool(finished)


def _picture(path: bytes, size: int, modified: int, reason: str) -> Picture:
    if not (
        isinstance(path, bytes) and isinstance(size, int) and isinstance(modified, int) and isinstance(reason, str)
    ):
        raise TypeError("a picture's record has values of other types")
    name = os.fsdecode(path)
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} is not a path inside the folder")
    return Picture(name, size, modified, reason)


def _packed(feature: np.ndarray) -> bytes:
    return np.asarray(feature, "<f4").tobytes()


def _unpacked(data: bytes) -> np.ndarray:
    if not isinstance(data, bytes):
        raise TypeError("a feature is not stored as bytes")
    return np.frombuffer(data, "<f4")
